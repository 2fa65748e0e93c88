"""How the two post-processings differ on real maps: nuclei, AJI, and what an artefact far away changes.

Usage:
  post_proc_compare.py --model_path=<file> [--data_dir=<dir>] [--gpu=<ids>] [--doc=<file>]
  post_proc_compare.py (-h | --help)

Options:
  --model_path=<file>  The network: net.tar of a run.
  --data_dir=<dir>     Folder that the network's recipe can read, with a valid split. [default: ../shared/data]
  --gpu=<ids>          As for run_train.py. [default: cpu]
  --doc=<file>         Also put the table into this document, between its two marks.

Run it from the repository root as `python -m benchmarks.post_proc_compare`. The network answers once for each valid
image, and both post-processings are given its maps: as they are, and with an artefact written into one corner of them.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from docopt import docopt

from dataloader.datasets import open_source
from hovernet_cyclic.core.errors import CheckpointError, DatasetError, HoverNetCyclicError
from hovernet_cyclic.core.label_maps import boxes
from hovernet_cyclic.core.metrics import score
from hovernet_cyclic.core.settings import POST_PROCS, TrainRecipe
from hovernet_cyclic.core.types import AnnotatedSource, Int32Array, RawMaps, Segmenter
from infer.base import NetworkSegmenter
from models.checkpoint import load_network
from models.devices import choose_device
from models.hovernet.post_proc import segment

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
CORNER = 32  # px, side of the artefact
STRENGTH = 2.0  # of its hv, where nuclei reach 1: a network answers so at folds and pen marks, nothing bounds it
FAR = 96  # px from the artefact's corner: no post-processing by neighbourhood reaches further


class Found(NamedTuple):
    """One image by one post-processing. nuclei: how many are found. aji: of them against the labels.

    kept: share of those far away that an artefact leaves as they are. spoilt_aji: AJI with the artefact.
    """

    nuclei: int
    aji: float
    spoilt_aji: float
    kept: float


class Row(NamedTuple):
    """One image, and what each post-processing makes of its maps."""

    tile_id: str
    true_nuclei: int
    found: dict[str, Found]


def main() -> int:
    arguments = docopt(__doc__ or "")
    try:
        segmenter, source = opened(arguments)
        table = render(list(compare(segmenter, source)))
        print(table)
        if arguments["--doc"]:
            write_between_marks(Path(arguments["--doc"]), table)
    except HoverNetCyclicError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def opened(arguments: dict[str, Any]) -> tuple[Segmenter, AnnotatedSource]:
    """The network, and the valid images of the data that it was trained on. Raises CheckpointError or DatasetError."""
    device = choose_device(arguments["--gpu"])
    loaded = load_network(arguments["--model_path"])
    if loaded.recipe is None:
        raise CheckpointError(f"{arguments['--model_path']}: it holds no recipe: give the net.tar of a run.")
    data = TrainRecipe.from_dict(loaded.recipe).data
    valid = open_source(data, arguments["--data_dir"], with_patches=False).valid
    if valid is None:
        raise DatasetError(f"{arguments['--data_dir']} has no valid split: add valid images and labels.")
    return NetworkSegmenter(loaded.net, loaded.mode, device.torch_device, dtype=device.dtype), valid


def compare(segmenter: Segmenter, source: AnnotatedSource) -> Iterator[Row]:
    for index, tile_id in enumerate(source.tile_ids):
        true_map = source.annotation(index).inst_map
        raw = segmenter.raw_maps(source.read_tile(index).image)
        spoilt = with_artefact(raw)
        found = {variant: found_by(variant, raw, spoilt, true_map) for variant in POST_PROCS}
        yield Row(tile_id, len(boxes(true_map)), found)


def found_by(variant: str, raw: RawMaps, spoilt: RawMaps, true_map: Int32Array) -> Found:
    inst_map, after = segment(raw, variant), segment(spoilt, variant)
    aji, spoilt_aji = (score(true_map, found).aji for found in (inst_map, after))
    return Found(len(boxes(inst_map)), aji, spoilt_aji, share_kept(inst_map, after))


def with_artefact(raw: RawMaps) -> RawMaps:
    """The maps with stripes of strong hv in their first corner, as a fold or a pen mark can make a network answer."""
    np_prob, hv_map = raw.np_prob.copy(), raw.hv_map.copy()
    np_prob[:CORNER, :CORNER] = 1.0
    hv_map[:CORNER, :CORNER] = np.where(np.arange(CORNER) // 8 % 2, -STRENGTH, STRENGTH)[None, :, None]
    return dataclasses.replace(raw, np_prob=np_prob, hv_map=hv_map)


def share_kept(before: Int32Array, after: Int32Array) -> float:
    """Of the nuclei of `before` that are far from the corner, the share that `after` has pixel by pixel, or nan."""
    areas = np.bincount(after.ravel())
    kept = []
    for inst_id, box in boxes(before).items():
        if max(box.top, box.left) < FAR:
            continue
        window = slice(box.top, box.bottom), slice(box.left, box.right)
        mask = before[window] == inst_id
        others = np.unique(after[window][mask])
        kept.append(len(others) == 1 and others[0] > 0 and areas[others[0]] == mask.sum())
    return float(np.mean(kept)) if kept else float("nan")


def render(rows: Iterable[Row]) -> str:
    """A table in Markdown, with the mean in its last line."""
    rows = list(rows)
    titles = [
        f"{what}, `{variant}`" for what in ("nuclei", "AJI", "AJI with artefact", "kept") for variant in POST_PROCS
    ]
    lines = ["| image | true nuclei | " + " | ".join(titles) + " |", "|---" * (2 + len(titles)) + "|"]
    for row in rows:
        lines.append(_line(row.tile_id, row.true_nuclei, row.found))
    means = {
        variant: Found(*(float(np.nanmean([row.found[variant][i] for row in rows])) for i in range(len(Found._fields))))
        for variant in POST_PROCS
    }
    return "\n".join([*lines, _line("mean", float(np.mean([row.true_nuclei for row in rows])), means)])


def _line(name: str, true_nuclei: float, found: dict[str, Found]) -> str:
    formats = {"nuclei": "{:.0f}", "aji": "{:.3f}", "spoilt_aji": "{:.3f}", "kept": "{:.1%}"}
    cells = [text.format(getattr(found[variant], what)) for what, text in formats.items() for variant in POST_PROCS]
    return f"| {name} | {true_nuclei:.0f} | " + " | ".join(cells) + " |"


def write_between_marks(path: Path, table: str) -> None:
    """Replace what stands between the marks of a document. Raises DatasetError where it has none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if BEGIN not in text or END not in text:
        raise DatasetError(f"{path}: it has no lines '{BEGIN}' and '{END}': add them where the table belongs.")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
