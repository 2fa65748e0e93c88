"""PanNuke (Gamper et al., 2020), as published: three folds of NumPy arrays.

DATA_DIR/Fold <n>/images/fold<n>/images.npy   (N, 256, 256, 3), 0..255 in any number type
DATA_DIR/Fold <n>/images/fold<n>/types.npy    (N,), names of tissues; not read
DATA_DIR/Fold <n>/masks/fold<n>/masks.npy     (N, 256, 256, 6): instances of the five types, then background
DATA_DIR/MyNP/{positive,negative}/*.png       the image-level labels

Fold 1 is trained on, fold 2 is `valid`, fold 3 `test`; arrays are read a patch at a time, from the disk. 40x
(0.25 um/px), 19 tissues, 7,901 patches, 189,744 nuclei. Licence: CC BY-NC-SA 4.0. Cite Gamper et al., PanNuke Dataset
Extension, Insights and Baselines, arXiv:2003.10778.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataloader.datasets.files import DrawnTile, FileSource, TileFile, check_recipe, drawn_or_none, patches_beside
from dataloader.datasets.npy_files import mapped, rgb_of
from dataloader.instances import paint, piece_of
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import Annotation, DataSplits, UInt8Array

MPP = 0.25
TYPES = ("background", "neoplastic", "inflammatory", "connective", "dead", "epithelial")
FOLDS = (1, 2, 3)


@dataclass(frozen=True)
class PatchOfFold(TileFile):
    """One patch of a fold's array. row: its place in the array."""

    row: int = 0

    def read(self) -> UInt8Array:
        """uint8 (256, 256, 3) RGB. Raises DatasetError."""
        return rgb_of(self.path, mapped(self.path)[self.row])

    def shape(self) -> tuple[int, int]:
        """(height, width) px. Raises DatasetError."""
        _, height, width, _ = mapped(self.path).shape
        return height, width


def open_pannuke(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """Fold 1 to train on, fold 2 as `valid`, fold 3 as `test`. Opens the headers of images.npy alone.

    Types are read where data.type_names is TYPES. with_patches: whether to list MyNP, which then must be there.
    Raises DatasetError (one sentence: file and cure).
    """
    check_recipe(data, data_dir, MPP)
    if data.type_names not in ((), TYPES):
        raise DatasetError(f"data.type_names is ({', '.join(data.type_names)}): PanNuke has ({', '.join(TYPES)}).")
    folds = {fold: _patches(data_dir, fold) for fold in FOLDS}
    if not folds[1]:
        raise DatasetError(f"{data_dir} holds no 'Fold 1/images/fold1/images.npy': unpack the whole of PanNuke there.")
    drawn = {
        fold: drawn_or_none(_drawn(data_dir, fold, patches, bool(data.type_names)), data.mpp)
        for fold, patches in folds.items()
    }
    return DataSplits(
        train=FileSource(data, folds[1], patches_beside(data_dir, with_patches)),
        train_annotated=drawn[1],
        valid=drawn[2],
        test={} if drawn[3] is None else {"test": drawn[3]},
    )


def _array(data_dir: Path, fold: int, name: str) -> Path | None:
    """DATA_DIR/Fold n/<name>/fold n/<name>.npy; mirrors of the set write the folders in other ways."""
    for root in (data_dir / f"Fold {fold}", data_dir / f"fold{fold}", data_dir / f"Fold{fold}"):
        for path in (root / name / f"fold{fold}" / f"{name}.npy", root / name / f"{name}.npy", root / f"{name}.npy"):
            if path.is_file():
                return path
    return None


def _patches(data_dir: Path, fold: int) -> list[PatchOfFold]:
    path = _array(data_dir, fold, "images")
    if path is None:
        return []
    images = mapped(path)
    if images.ndim != 4 or images.shape[3] != 3:
        raise DatasetError(f"{path} holds an array of shape {images.shape}: PanNuke's is (N, 256, 256, 3).")
    return [PatchOfFold(f"fold{fold}_{row:04d}", path, row) for row in range(len(images))]


def _drawn(data_dir: Path, fold: int, patches: Sequence[PatchOfFold], typed: bool) -> list[DrawnTile]:
    path = _array(data_dir, fold, "masks")
    if path is None:
        return []
    return [DrawnTile(patch, path, partial(_annotation, path, patch.row, len(patches), typed)) for patch in patches]


def _annotation(path: Path, row: int, count: int, typed: bool, shape: tuple[int, int]) -> Annotation:
    masks = mapped(path)
    if masks.ndim != 4 or masks.shape[3] != len(TYPES) or len(masks) != count:
        raise DatasetError(
            f"{path} holds an array of shape {masks.shape}, but its fold has {count} images: PanNuke's is "
            f"(N, 256, 256, {len(TYPES)}); unpack it again."
        )
    instances: npt.NDArray[Any] = np.asarray(masks[row, :, :, :-1])
    pieces = []
    for channel in range(instances.shape[2]):
        values = instances[:, :, channel]
        pieces += [piece_of(values == k, channel + 1) for k in np.unique(values) if k > 0]
    return paint(pieces, (instances.shape[0], instances.shape[1]), typed)
