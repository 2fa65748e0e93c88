"""The benchmark's open images, written in the layouts that the Cyclic Learning paper's repositories document.

Usage:
  convert_data.py --out=<dir> [options]
  convert_data.py (-h | --help)

Options:
  --out=<dir>        Folder to write, new or empty: MoNuSACGT, MoNuSACCROP, consepcrop and MyNP come to lie in it.
  --data_dir=<dir>   Folder of the benchmark (see dataloader/datasets/benchmark.py). [default: ../shared/data]
  --images=<n>       Convert only the first n images of each set, by name, and the patches cut from them.
  -h --help          Show this text.

Run it from the repository root as `python -m benchmarks.convert_data`. Then, for example:
  python run_train.py --recipe=monusac --data_dir=OUT --check_data

What is written:
- MoNuSACGT: those of Kumar's 30 images that the benchmark has (29 of them), one PNG per nucleus.
- MoNuSACCROP: the same, cut into 16 crops of 250 px each; masks as label maps.
- consepcrop: CoNSeP's tiles, whole. Tiles 15, 22 and 26 become Test (as in the recipe `consep_types`), the rest Train.
  The benchmark's class maps have joined CoNSeP's seven types to four: of the seven, the first that joins is written.
- MyNP: the windows of patch_labels.csv as they are (64 to 128 px; the paper's are 224 px). Windows cut from an image
  that is scored on, in either set, are left out and counted: as training patches they would leak.
Every label map is then read back through the toolkit's readers and compared, pixel by pixel: exit code 1 if any
differs.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from docopt import docopt
from joblib import Parallel, delayed
from scipy.io import savemat

from dataloader.datasets import open_source
from dataloader.datasets.consep import MERGED_TYPES
from dataloader.datasets.kumar import SPLIT_OF, TRAIN
from dataloader.datasets.monusac import CROP, CROPS
from dataloader.images import read_rgb, write_png
from dataloader.label_files import read_label_map
from hovernet_cyclic.command_line import whole_number
from hovernet_cyclic.core.errors import DatasetError, HoverNetCyclicError
from hovernet_cyclic.core.label_maps import boxes, relabel
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import AnnotatedSource, Annotation, DataSplits

CONSEP_TEST = ("train_15", "train_22", "train_26")
SEVENTH_OF = np.array([0, 1, 2, 3, 5], np.uint8)  # merged type -> the first of CoNSeP's seven that joins it


class Original(NamedTuple):
    """An image of the benchmark: its files, and the split that it has in the converted set."""

    name: str
    split: str
    image: Path
    label: Path
    types: Path | None


def main() -> int:
    arguments = docopt(__doc__ or "")
    source, out = Path(arguments["--data_dir"]), Path(arguments["--out"])
    try:
        limit = None if arguments["--images"] is None else whole_number("--images", arguments["--images"], 1)
        if out.exists() and any(out.iterdir()):
            raise DatasetError(f"{out} is not empty: give a new folder as --out.")
        kumar, consep = originals(source, limit)
        convert(kumar, consep, out)
        print(patches(source, kumar + consep, out))
        differing = list(differences(kumar, consep, out))
    except HoverNetCyclicError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(kumar)} images of Kumar's 30, {len(consep)} of CoNSeP; {len(differing)} maps differ when read back")
    print("\n".join(differing), file=sys.stderr)
    return 1 if differing else 0


def originals(source: Path, limit: int | None = None) -> tuple[list[Original], list[Original]]:
    """Kumar's and CoNSeP's images in the benchmark, sorted by name."""
    kumar = [
        Original(path.stem, SPLIT_OF[path.stem], path, source / "monuseg" / "labels" / path.name, None)
        for path in sorted((source / "monuseg" / "images").glob("*.png"))
        if path.stem in SPLIT_OF
    ]
    consep = [
        Original(
            path.stem,
            "Test" if path.stem in CONSEP_TEST else "Train",
            path,
            source / "consep" / "labels" / path.name,
            source / "consep" / "class_maps" / path.name,
        )
        for path in sorted((source / "consep" / "images").glob("*.png"))
    ]
    if not kumar or not consep:
        raise DatasetError(f"{source} holds no monuseg/images or consep/images: give the benchmark as --data_dir.")
    return kumar[:limit], consep[:limit]


def convert(kumar: list[Original], consep: list[Original], out: Path) -> None:
    """Write MoNuSACGT, MoNuSACCROP and consepcrop."""
    jobs = [delayed(write_kumar)(original, out) for original in kumar]
    Parallel(-1, prefer="threads")(jobs + [delayed(write_consep)(original, out) for original in consep])


def write_kumar(original: Original, out: Path) -> None:
    """An image of MoNuSACGT, and its crops in MoNuSACCROP."""
    image, inst_map = read_rgb(original.image), read_label_map(original.label).inst_map
    folder = out / "MoNuSACGT" / "stage1_train" / original.name
    write_png(folder / "images" / f"{original.name}.png", image)
    for number, inst_id in enumerate(boxes(inst_map), 1):
        write_png(folder / "masks" / f"mask_{number:04d}.png", (inst_map == inst_id).astype(np.uint8) * 255)
    for n in range(CROPS * CROPS):
        window = crop_window(n)
        name = f"{original.name}_crop_{n}.png"
        write_png(out / "MoNuSACCROP" / "images" / name, np.ascontiguousarray(image[window]))
        write_png(out / "MoNuSACCROP" / "masks" / name, inst_map[window].astype(np.uint16))


def crop_window(n: int) -> tuple[slice, slice]:
    """Rows and columns of crop n: n % 4 counts down the image, n // 4 across it, as the paper's code cuts."""
    top, left = CROP * (n % CROPS), CROP * (n // CROPS)
    return slice(top, top + CROP), slice(left, left + CROP)


def write_consep(original: Original, out: Path) -> None:
    """An image of consepcrop, with all that CoNSeP's own files hold."""
    annotation = read_label_map(original.label, original.types)
    folder = out / "consepcrop" / original.split
    write_png(folder / "Images" / f"{original.name}.png", read_rgb(original.image))
    type_map = SEVENTH_OF[annotation.type_map]
    content = {"inst_map": annotation.inst_map.astype(float), "type_map": type_map.astype(float)}
    content |= described(annotation, type_map)
    (folder / "Labels").mkdir(parents=True, exist_ok=True)
    savemat(folder / "Labels" / f"{original.name}.mat", content, do_compression=True)


def described(annotation: Annotation, type_map: np.ndarray) -> dict[str, np.ndarray]:
    """inst_type (N, 1) and inst_centroid (N, 2) x, y of a label map's nuclei, by ascending ids."""
    types, centroids = [], []
    for inst_id, box in boxes(annotation.inst_map).items():
        window = slice(box.top, box.bottom), slice(box.left, box.right)
        rows, columns = np.nonzero(annotation.inst_map[window] == inst_id)
        types.append([np.bincount(type_map[window][rows, columns]).argmax()])
        centroids.append([columns.mean() + box.left, rows.mean() + box.top])
    return {"inst_type": np.array(types, float), "inst_centroid": np.array(centroids, float)}


def patches(source: Path, converted: list[Original], out: Path) -> str:
    """Write MyNP and return what was written, in words."""
    split_of = {original.name: original.split for original in converted}
    images = {original.name: original.image for original in converted}
    by_image: dict[str, list[dict[str, str]]] = {}
    held_back = 0
    with (source / "patch_labels.csv").open(encoding="utf-8") as table:
        for row in csv.DictReader(table):
            split, rows = split_of.get(row["name"]), by_image.setdefault(row["name"], [])
            if split in (TRAIN, "Train") and row not in rows:  # one window is listed twice
                rows.append(row)
            held_back += split not in (TRAIN, "Train", None)
    by_image = {name: rows for name, rows in by_image.items() if rows}
    Parallel(-1, prefer="threads")(delayed(write_patches)(images[name], rows, out) for name, rows in by_image.items())
    written = sum(map(len, by_image.values()))
    return f"{written} patches of {len(by_image)} images; {held_back} of images to score on are left out"


def write_patches(image_path: Path, rows: list[dict[str, str]], out: Path) -> None:
    image = read_rgb(image_path)
    for row in rows:
        size, top, left = (int(row[key]) for key in ("size", "y", "x"))
        window = np.ascontiguousarray(image[top : top + size, left : left + size])
        write_png(out / "MyNP" / row["label"] / f"{row['name']}__{size}_{top}_{left}.png", window)


def differences(kumar: list[Original], consep: list[Original], out: Path) -> Iterator[str]:
    """The maps that the toolkit's readers do not give back as they were, in words."""
    expected = {original.name: original for original in kumar}
    for tile_id, annotation in drawn(open_source(DataSettings("monusac"), str(out), with_patches=False)):
        if not np.array_equal(annotation.inst_map, ordered(expected[tile_id])):
            yield f"MoNuSACGT: {tile_id} has another label map"
    expected = {original.name: original for original in consep}
    with_types = DataSettings("consep", type_names=MERGED_TYPES)
    for tile_id, annotation in drawn(open_source(with_types, str(out), with_patches=False)):
        truth = read_label_map(expected[tile_id].label, expected[tile_id].types)
        same = np.array_equal(annotation.inst_map, truth.inst_map)
        if not same or not np.array_equal(annotation.type_map, truth.type_map):
            yield f"consepcrop: {tile_id} has another label or type map"


def drawn(splits: DataSplits) -> Iterator[tuple[str, Annotation]]:
    """Every annotated tile of every split."""
    sources: list[AnnotatedSource | None] = [splits.train_annotated, splits.valid, *splits.test.values()]
    for source in sources:
        if source is not None:
            for index, tile_id in enumerate(source.tile_ids):
                yield tile_id, dataclasses.replace(source.annotation(index), tile_id=tile_id)


def ordered(original: Original) -> np.ndarray:
    """The label map with its nuclei numbered 1..N: one PNG a nucleus keeps the order of the ids, not their gaps."""
    return relabel(read_label_map(original.label).inst_map)


if __name__ == "__main__":
    sys.exit(main())
