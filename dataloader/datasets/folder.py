"""Own data in folders.

DATA_DIR/patches/positive/*.png   patches that hold at least one whole nucleus (any suffix of `IMAGE_SUFFIXES`)
DATA_DIR/patches/negative/*.png   patches that hold none
DATA_DIR/tiles/*.png              unlabelled tiles to segment while learning
DATA_DIR/labels/*.png             optional: label maps of `tiles`, for recipes that learn from masks
DATA_DIR/{valid,test}/images, DATA_DIR/{valid,test}/labels     optional: tiles with label maps, to score on
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from dataloader.datasets.annotated import tiles_with_labels, unique_stems
from dataloader.images import image_shape, list_images, read_rgb
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import DataSplits, Float32Array, ImageTile, LabelledPatch

PATCH_KINDS = ("positive", "negative")
_MEANING = {"positive": "that hold a nucleus", "negative": "without any nucleus"}


class FolderSource:
    """A `TileSource` over the folders named at the top of this file. It knows no label map."""

    def __init__(self, data: DataSettings, data_dir: Path, with_patches: bool = True) -> None:
        """Lists the folders, opens no image. Raises DatasetError for folders that are missing, empty or one-sided."""
        self._data = data
        self._tiles = unique_stems(data_dir / "tiles")
        kinds = PATCH_KINDS if with_patches else ()
        self._patches = [(path, kind) for kind in kinds for path in _list_kind(data_dir / "patches", kind)]

    @property
    def class_names(self) -> Sequence[str]:
        """Name of the one image-level class."""
        return self._data.class_names

    @property
    def tile_ids(self) -> Sequence[str]:
        """Stems of the files in `tiles`."""
        return [path.stem for path in self._tiles]

    def read_tile(self, index: int) -> ImageTile:
        """The tile at `index`: image uint8 (H, W, 3) RGB, from disk. Raises DatasetError for a bad image."""
        path = self._tiles[index]
        return ImageTile(path.stem, read_rgb(path), self._data.mpp)

    @cached_property
    def patch_labels(self) -> Float32Array:
        """float32 (P, 1): 1 for positive patches, 0 for negative ones."""
        return np.array([[kind == "positive"] for _, kind in self._patches], np.float32).reshape(-1, 1)

    @cached_property
    def patch_shapes(self) -> Sequence[tuple[int, int]]:
        """(height, width) px of each of the P patches, from their headers. Raises DatasetError for a bad file."""
        return [image_shape(path) for path, _ in self._patches]

    @property
    def patch_groups(self) -> Sequence[str]:
        """What stands before a double underscore in each file's name, all of it where there is none.

        Patches of one group come from one image, and are held out together: slide7__0001.png, slide7__0002.png.
        """
        return [path.stem.split("__")[0] for path, _ in self._patches]

    def read_patch(self, index: int) -> LabelledPatch:
        """The patch at `index`: image uint8 (h, w, 3) RGB; labels float32 (1,). Raises DatasetError."""
        path, kind = self._patches[index]
        return LabelledPatch(f"{kind}/{path.stem}", read_rgb(path), self.patch_labels[index])


def open_folder(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """The splits of own data; annotated ones where their label folder exists. Opens no file.

    with_patches: whether to list the folders of patches, which then must be there.
    Raises DatasetError (one sentence: folder and cure).
    """
    if len(data.class_names) != 1:
        raise DatasetError(
            f"{data_dir} is read as patches/positive and patches/negative, which make one class, but the recipe names "
            f"{len(data.class_names)}: give data.class_names one name."
        )
    test = tiles_with_labels(data_dir / "test" / "images", data_dir / "test" / "labels", data.mpp)
    return DataSplits(
        train=FolderSource(data, data_dir, with_patches),
        train_annotated=tiles_with_labels(data_dir / "tiles", data_dir / "labels", data.mpp),
        valid=tiles_with_labels(data_dir / "valid" / "images", data_dir / "valid" / "labels", data.mpp),
        test={} if test is None else {"test": test},
    )


def _list_kind(patches_dir: Path, kind: str) -> list[Path]:
    other = PATCH_KINDS[1 - PATCH_KINDS.index(kind)]
    try:
        return list_images(patches_dir / kind)
    except DatasetError:
        if not _has_images(patches_dir / other):
            raise
    raise DatasetError(
        f"{patches_dir} holds {other} patches but no {kind} ones: put patches {_MEANING[kind]} into "
        f"{patches_dir / kind}, for a classifier learns from both."
    )


def _has_images(folder: Path) -> bool:
    try:
        return bool(list_images(folder))
    except DatasetError:
        return False
