"""The layout that the ccRCC and CoNSeP folders of the paper share: splits of PNG images with MAT label maps.

ROOT/{Train,Valid,Test}/Images/*.png
ROOT/{Train,Valid,Test}/Labels/<image>.mat             see `label_files.MAT_NAMES`
ROOT/{Train,Valid,Test}/Instance_mask/<image>/*.png    one PNG per nucleus, read where there is no Labels folder
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloader.converted import CACHE_NAME
from dataloader.datasets.annotated import label_file, unique_stems
from dataloader.datasets.files import (
    DrawnTile,
    FileSource,
    TileFile,
    check_recipe,
    drawn_or_none,
    find_root,
    patches_beside,
)
from dataloader.instance_masks import read_instance_masks
from dataloader.label_files import read_label_map
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import Annotation, DataSplits, UInt8Array


class Layout(NamedTuple):
    """What tells one set from the other.

    roots: names of its folder. types: names of the types in its files, background first. mpp: um/px. merges: other
    lists of type names that a recipe may ask for, each with the new type of every type in the files.
    """

    roots: tuple[str, ...]
    types: tuple[str, ...]
    mpp: float
    merges: dict[tuple[str, ...], tuple[int, ...]]


def open_mat_splits(layout: Layout, data: DataSettings, data_dir: Path, with_patches: bool) -> DataSplits:
    """Train to train on, Valid as `valid` and Test as `test` where they are there. Opens no file.

    Types are read where data.type_names names them. with_patches: whether to list MyNP, which then must be there.
    Raises DatasetError (one sentence: file and cure).
    """
    check_recipe(data, data_dir, layout.mpp)
    root = find_root(data_dir, layout.roots, "Train")
    read = partial(_read, retype=_retype(layout, data))
    train = [TileFile(path.stem, path) for path in unique_stems(root / "Train" / "Images")]
    test = drawn_or_none(_drawn(root / "Test", root / CACHE_NAME, read), data.mpp)
    return DataSplits(
        train=FileSource(data, train, patches_beside(data_dir, with_patches)),
        train_annotated=drawn_or_none(_drawn(root / "Train", root / CACHE_NAME, read), data.mpp),
        valid=drawn_or_none(_drawn(root / "Valid", root / CACHE_NAME, read), data.mpp),
        test={} if test is None else {"test": test},
    )


def _retype(layout: Layout, data: DataSettings) -> UInt8Array | None:
    """uint8 (256,): type in the files -> type of the recipe, 255 for one that the set does not have; None: no types."""
    merges = {layout.types: tuple(range(len(layout.types))), **layout.merges}
    if not data.type_names:
        return None
    if data.type_names not in merges:
        allowed = " or ".join(f"({', '.join(names)})" for names in merges)
        raise DatasetError(f"data.type_names is ({', '.join(data.type_names)}): this set has {allowed}.")
    table = np.full(256, 255, np.uint8)
    table[: len(layout.types)] = merges[data.type_names]
    return table


def _drawn(split: Path, cache_dir: Path, read: Callable[[Path, Path, tuple[int, int]], Annotation]) -> list[DrawnTile]:
    """The images of a split with their masks; [] where the split or its masks are not there."""
    labels, masks = split / "Labels", split / "Instance_mask"
    if not labels.is_dir() and not masks.is_dir():
        return []
    drawn = []
    for path in unique_stems(split / "Images"):
        if labels.is_dir():
            drawn.append(DrawnTile(TileFile(path.stem, path), labels, partial(read, path, labels)))
        else:
            folder = masks / path.stem
            draw = partial(read_instance_masks, folder, cache_dir=cache_dir)
            drawn.append(DrawnTile(TileFile(path.stem, path), folder, draw))
    return drawn


def _read(image: Path, labels: Path, shape: tuple[int, int], retype: UInt8Array | None) -> Annotation:
    path = label_file(image, labels)
    label = read_label_map(path)
    if retype is None or label.type_map is None:
        return Annotation(path.stem, label.inst_map, None)
    type_map = retype[label.type_map]
    if type_map.max(initial=0) == 255:
        raise DatasetError(
            f"{path} has a nucleus of type {int(label.type_map[type_map == 255][0])}, which this set does not have: "
            "unpack it again."
        )
    return Annotation(path.stem, label.inst_map, type_map)
