"""Images and masks in NumPy files: hover_net's patches, and what other sets in .npy share.

Reader `npy_patches`, as hover_net's extract_patches.py writes them:

DATA_DIR/train/*.npy   (H, W, 4) or (H, W, 5): red, green, blue 0..255, instances, and types where there are 5
DATA_DIR/valid/*.npy   the same, to score on

or one folder below each (train/540x540_164x164/*.npy). A file holds the image and its masks, so that a run on
image-level labels may not open it: this reader is for supervision 'masks'. The licence is that of the set.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataloader.datasets.files import DrawnTile, FileSource, TileFile, check_recipe, drawn_or_none
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import Annotation, DataSplits, UInt8Array


class NpyPatch(TileFile):
    """The image of a patch."""

    def read(self) -> UInt8Array:
        """uint8 (H, W, 3) RGB. Raises DatasetError."""
        return rgb_of(self.path, _checked(self.path)[..., :3])

    def shape(self) -> tuple[int, int]:
        """(height, width) px. Raises DatasetError."""
        height, width, _ = _checked(self.path).shape
        return height, width


def open_npy_patches(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """The patches of train/ to learn from, and those of valid/ to score on. Opens no file.

    with_patches: must be False: see the top of this file. Raises DatasetError (one sentence: file and cure).
    """
    check_recipe(data, data_dir)
    if with_patches:
        raise DatasetError(
            f"{data_dir}: these .npy files hold masks beside the images, and a run on image-level labels may not open "
            "them: set supervision to 'masks', or use images of their own (data.reader 'folder')."
        )
    train = _list(data_dir / "train")
    if not train:
        raise DatasetError(f"{data_dir / 'train'} holds no .npy patches: give the folder of train/ as --data_dir.")
    return DataSplits(
        train=FileSource(data, train, ()),
        train_annotated=drawn_or_none(_drawn(train, data), data.mpp),
        valid=drawn_or_none(_drawn(_list(data_dir / "valid"), data), data.mpp),
    )


def mapped(path: Path) -> npt.NDArray[Any]:
    """The array of a file, left on the disk and read where it is indexed. Raises DatasetError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error}): check the file.") from error
    except (ValueError, EOFError) as error:
        raise DatasetError(f"{path} is damaged or no NPY array of numbers: copy or unpack it again.") from error
    if not isinstance(array, np.ndarray):
        raise DatasetError(f"{path} holds several arrays: save one with numpy.save.")
    return array


def rgb_of(path: Path, values: npt.NDArray[Any]) -> UInt8Array:
    """uint8 (H, W, 3) of an image in any number type. Raises DatasetError for values outside 0..255 or between two."""
    pixels = np.asarray(values)
    if pixels.dtype != np.uint8 and not (
        np.all(pixels == np.round(pixels)) and 0 <= pixels.min() <= pixels.max() < 256
    ):
        raise DatasetError(f"{path} holds an image that is not whole numbers from 0 to 255: save it as 8-bit RGB.")
    return np.ascontiguousarray(pixels, np.uint8)


def _list(folder: Path) -> list[NpyPatch]:
    found: dict[str, NpyPatch] = {}
    for path in sorted([*folder.glob("*.npy"), *folder.glob("*/*.npy")]):
        other = found.setdefault(path.stem, NpyPatch(path.stem, path))
        if other.path != path:
            raise DatasetError(f"{other.path} and {path} have one name: keep only one of them.")
    return list(found.values())


def _drawn(patches: list[NpyPatch], data: DataSettings) -> list[DrawnTile]:
    return [DrawnTile(p, p.path, partial(_annotation, p.path, bool(data.type_names))) for p in patches]


def _checked(path: Path) -> npt.NDArray[Any]:
    array = mapped(path)
    if array.ndim != 3 or array.shape[2] not in (4, 5):
        raise DatasetError(f"{path} holds an array of shape {array.shape}: hover_net's patches are (H, W, 4 or 5).")
    return array


def _annotation(path: Path, typed: bool, shape: tuple[int, int]) -> Annotation:
    array = _checked(path)
    labels = np.asarray(array[..., 3:])
    if labels.size and (np.any(labels != np.round(labels)) or labels.min() < 0):
        raise DatasetError(f"{path} holds instances or types that are no whole numbers from 0: extract it again.")
    type_map = labels[..., 1].astype(np.uint8) if typed and labels.shape[2] == 2 else None
    return Annotation(path.stem, labels[..., 0].astype(np.int32), type_map)
