"""Whether what makes inference fast changes the nuclei: each way of asking a network, against the plain one.

Usage:
  agreement.py --model_path=<file> --input_dir=<dir> [options]
  agreement.py (-h | --help)

Options:
  --model_path=<file>   A trained network (net.tar).
  --input_dir=<dir>     Images at the network's scale.
  --images=<n>          How many of them, first by name; all if not given.
  --out=<file>          Also write the table as JSON.
  -h --help             Show this text.

Run it from the repository root as `python -m benchmarks.agreement`, on a CPU. The plain way is the network as it was
trained, in float32, on the largest patches. Post-processing is 'local' in all, and types are not compared. `nuclei`: of
the plain way and of the other. `IoU > .99`: share of the plain way's that have a partner with more than that. `pixels`:
share of those whose probability differs by more than .01, mean over images; `most`: the largest difference.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from docopt import docopt

from benchmarks.json_report import write_report
from dataloader.images import list_images, read_rgb
from hovernet_cyclic.command_line import whole_number
from hovernet_cyclic.core.errors import HoverNetCyclicError, RecipeError
from hovernet_cyclic.core.metrics import Float64Array, overlap_table
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import RawMaps, Segmenter
from infer.base import NetworkSegmenter, ReferenceSegmenter
from models.checkpoint import LoadedNetwork, load_network
from models.hovernet.net_desc import margin
from models.hovernet.post_proc import SMALLEST_AREA, segment

SMALL_CELL = 64  # px a side that a small patch answers for
DIFFERS = 0.01


class Difference(NamedTuple):
    """What one way changes on one image. iou: of each nucleus of the plain way, its best partner's. nuclei: its own."""

    iou: Float64Array
    nuclei: int
    pixels: float
    most: float


def all_ways(loaded: LoadedNetwork) -> dict[str, Segmenter]:
    """Name -> the network asked in that way; the first is the plain one."""
    net, mode = loaded.net, loaded.mode

    def asked(dtype: torch.dtype = torch.float32, frozen: bool = True, patch: int | None = None) -> NetworkSegmenter:
        return NetworkSegmenter(net, mode, "cpu", dtype=dtype, frozen=frozen, largest_patch=patch)

    small = SMALL_CELL + 2 * margin(mode)
    return {
        "plain, float32": asked(frozen=False),
        "frozen, float32": asked(),
        f"frozen, float32, patches of {small} px": asked(patch=small),
        "frozen, float32, the lattice of training": ReferenceSegmenter(net, mode, "cpu"),
        "autocast, bfloat16": asked(torch.bfloat16, frozen=False),
        "frozen, bfloat16": asked(torch.bfloat16),
    }


def difference(plain: RawMaps, other: RawMaps, smallest_area: int) -> Difference:
    """Of the nuclei and probabilities of two answers to the same image. smallest_area: of a nucleus, px."""
    table = overlap_table(*(segment(raw, "local", smallest_area) for raw in (plain, other)))
    best = np.zeros(len(table.true_ids))
    np.maximum.at(best, table.pair_true, table.pair_iou)
    apart = np.abs(plain.np_prob - other.np_prob)
    return Difference(best, len(table.pred_ids), float((apart > DIFFERS).mean()), float(apart.max()))


def row_of(way: str, found: Sequence[Difference]) -> dict[str, Any]:
    """A row of the table: all nuclei of all images as one. Shares of no nucleus are None."""
    iou = np.concatenate([one.iou for one in found])
    above = {f"iou_above_{bar}": float((iou > bar).mean()) if len(iou) else None for bar in (0.99, 0.9)}
    most = max(one.most for one in found)
    return {
        "way": way,
        "nuclei": [len(iou), sum(one.nuclei for one in found)],
        **above,
        "pixels": float(np.mean([one.pixels for one in found])),
        "most": most,
    }


def measure(loaded: LoadedNetwork, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each way but the plain one, over all images."""
    smallest_area = TrainRecipe.from_dict(loaded.recipe).smallest_area if loaded.recipe else SMALLEST_AREA
    (_, plain), *others = all_ways(loaded).items()
    found: dict[str, list[Difference]] = {way: [] for way, _ in others}
    for path in paths:
        image = read_rgb(path)
        answer = plain.raw_maps(image)
        for way, segmenter in others:
            found[way].append(difference(answer, segmenter.raw_maps(image), smallest_area))
    return [row_of(way, differences) for way, differences in found.items()]


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = ["| way | nuclei | IoU > .99 | IoU > .9 | pixels | most |", "|---" * 6 + "|"]
    for row in rows:
        shares = [row[name] for name in ("iou_above_0.99", "iou_above_0.9", "pixels")]
        shown = " | ".join("none" if share is None else f"{share:.2%}" for share in shares)
        plain, other = row["nuclei"]
        lines.append(f"| {row['way']} | {plain}, {other} | {shown} | {row['most']:.2g} |")
    return "\n".join(lines)


def main() -> int:
    arguments = docopt(__doc__ or "")
    out = Path(arguments["--out"]) if arguments["--out"] else None
    try:
        if out and not out.parent.is_dir():
            raise RecipeError(f"--out={out}: there is no folder {out.parent}: create it, or name another file.")
        paths = list_images(arguments["--input_dir"])
        if arguments["--images"] is not None:
            paths = paths[: whole_number("--images", arguments["--images"], 1)]
        loaded = load_network(Path(arguments["--model_path"]))
        rows = measure(loaded, paths)
    except HoverNetCyclicError as error:
        print(error, file=sys.stderr)
        return 2
    print(render(rows))
    if out:
        write_report(out, {"rows": rows, "images": [path.name for path in paths]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
