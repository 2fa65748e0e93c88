"""Sources made of files: what every reader of a folder layout builds. A label file is opened by `annotation` alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloader.images import image_shape, list_images, read_rgb
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import Annotation, Float32Array, ImageTile, LabelledPatch, UInt8Array

PATCH_KINDS = ("positive", "negative")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".rar", ".7z")
_MEANING = {"positive": "that hold a nucleus", "negative": "without any nucleus"}
TCGA_PATIENT = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")
_MPP_TOLERANCE = 0.1  # share: scanners at 40x state 0.23 to 0.27


@dataclass(frozen=True)
class TileFile:
    """One image on disk. tile_id: its name in the run; path: its file, which sentences name."""

    tile_id: str
    path: Path

    def read(self) -> UInt8Array:
        """uint8 (H, W, 3) RGB. Raises DatasetError."""
        return read_rgb(self.path)

    def shape(self) -> tuple[int, int]:
        """(height, width) px. Raises DatasetError."""
        return image_shape(self.path)

    def mpp(self) -> float | None:
        """Micrometres per pixel as the file states them, None where it does not."""
        return None


class DrawnTile(NamedTuple):
    """A tile and its drawn masks. draw: (H, W) of the image -> Annotation, which opens `label`, a file or folder."""

    file: TileFile
    label: Path
    draw: Callable[[tuple[int, int]], Annotation]


class PatchFile(NamedTuple):
    """An image-level example on disk. kind: one of PATCH_KINDS; group: patches of one group are held out together."""

    path: Path
    kind: str
    group: str


class FileSource:
    """A `TileSource` over image files. It knows no label map."""

    def __init__(self, data: DataSettings, tiles: Sequence[TileFile], patches: Sequence[PatchFile]) -> None:
        self._data = data
        self._tiles = tuple(tiles)
        self._patches = tuple(patches)

    @property
    def class_names(self) -> Sequence[str]:
        """Name of the one image-level class."""
        return self._data.class_names

    @property
    def tile_ids(self) -> Sequence[str]:
        """Names of the unlabelled training tiles."""
        return [tile.tile_id for tile in self._tiles]

    def read_tile(self, index: int) -> ImageTile:
        """The tile at `index`: image uint8 (H, W, 3) RGB, from disk. Raises DatasetError for a bad image."""
        return read_at_scale(self._tiles[index], self._data.mpp)

    @cached_property
    def patch_labels(self) -> Float32Array:
        """float32 (P, 1): 1 for positive patches, 0 for negative ones."""
        return np.array([[patch.kind == "positive"] for patch in self._patches], np.float32).reshape(-1, 1)

    @cached_property
    def patch_shapes(self) -> Sequence[tuple[int, int]]:
        """(height, width) px of each of the P patches, from their headers. Raises DatasetError for a bad file."""
        return [image_shape(patch.path) for patch in self._patches]

    @cached_property
    def patch_groups(self) -> Sequence[str]:
        """What each of the P patches was cut from: see `list_patches`."""
        return [patch.group for patch in self._patches]

    def read_patch(self, index: int) -> LabelledPatch:
        """The patch at `index`: image uint8 (h, w, 3) RGB; labels float32 (1,). Raises DatasetError."""
        patch = self._patches[index]
        return LabelledPatch(f"{patch.kind}/{patch.path.stem}", read_rgb(patch.path), self.patch_labels[index])


class DrawnTiles:
    """An `AnnotatedSource` over image files whose masks each layout draws in its own way."""

    def __init__(self, tiles: Sequence[DrawnTile], mpp: float) -> None:
        self._tiles = tuple(tiles)
        self._mpp = mpp

    @property
    def tile_ids(self) -> Sequence[str]:
        """Names of the tiles."""
        return [tile.file.tile_id for tile in self._tiles]

    def read_tile(self, index: int) -> ImageTile:
        """The tile at `index`: image uint8 (H, W, 3) RGB, from disk. Raises DatasetError for a bad image."""
        return read_at_scale(self._tiles[index].file, self._mpp)

    def annotation(self, index: int) -> Annotation:
        """The drawn masks of the tile at `index`: opens its label files.

        inst_map int32 (H, W); type_map uint8 (H, W), or None. Raises DatasetError for a label that is missing, bad, or
        not of the image's size.
        """
        file, label, draw = self._tiles[index]
        shape = file.shape()
        drawn = draw(shape)
        if drawn.inst_map.shape != shape:
            rows, columns = drawn.inst_map.shape
            raise DatasetError(
                f"{label} has {rows} x {columns} px but {file.path} has {shape[0]} x {shape[1]} px: "
                "give the label map of this image."
            )
        return replace(drawn, tile_id=file.tile_id)


def read_at_scale(file: TileFile, mpp: float) -> ImageTile:
    """The tile, once its file does not contradict the recipe's `mpp`. Raises DatasetError."""
    stated = file.mpp()
    if stated is not None and abs(stated / mpp - 1) > _MPP_TOLERANCE:
        raise DatasetError(
            f"{file.path} is at {stated:g} um/px but data.mpp is {mpp:g}: set data.mpp to it, or leave the image out."
        )
    return ImageTile(file.tile_id, file.read(), mpp if stated is None else stated)


def list_patches(folder: Path) -> list[PatchFile]:
    """The image-level examples of FOLDER/positive and FOLDER/negative.

    A patch is grouped by the TCGA patient that its name begins with, else by what stands before a double underscore
    (slide7__0001.png) or before the window in brackets that QuPath writes (slide7 [x=0,y=96,...].png), else it is
    alone. Opens no file. Raises DatasetError for folders that are missing, empty or one-sided.
    """
    return [PatchFile(path, kind, _group(path.stem)) for kind in PATCH_KINDS for path in _list_kind(folder, kind)]


def _group(stem: str) -> str:
    patient = TCGA_PATIENT.match(stem)
    return patient.group() if patient else stem.split("__")[0].split(" [")[0]


def _list_kind(folder: Path, kind: str) -> list[Path]:
    other = PATCH_KINDS[1 - PATCH_KINDS.index(kind)]
    try:
        return list_images(folder / kind)
    except DatasetError:
        if not _has_images(folder / other):
            raise
    raise DatasetError(
        f"{folder} holds {other} patches but no {kind} ones: put patches {_MEANING[kind]} into "
        f"{folder / kind}, for a classifier learns from both."
    )


def _has_images(folder: Path) -> bool:
    try:
        return bool(list_images(folder))
    except DatasetError:
        return False


def patches_beside(data_dir: Path, wanted: bool) -> list[PatchFile]:
    """The patches of MyNP/positive and MyNP/negative in `data_dir` or beside it; [] where they are not `wanted`.

    Raises DatasetError where they are wanted and not there, or one-sided.
    """
    if not wanted:
        return []
    folders = [data_dir / "MyNP", data_dir.parent / "MyNP"]
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        raise DatasetError(
            f"{data_dir} holds no MyNP/positive and MyNP/negative, the image-level labels that this recipe learns "
            f"from: {_unpack_first(data_dir, ('MyNP',))}add them, or set supervision to 'masks'."
        )
    return list_patches(there[0])


def find_root(data_dir: Path, names: Sequence[str], inside: str) -> Path:
    """DATA_DIR/<name> for the first of the names that is there, or DATA_DIR itself where it holds `inside`.

    Raises DatasetError where there is neither, and says so where an archive of that name was not unpacked.
    """
    for name in names:
        if (data_dir / name).is_dir():
            return data_dir / name
    if (data_dir / inside).is_dir():
        return data_dir
    raise DatasetError(
        f"{data_dir} holds no folder {' or '.join(names)}: {_unpack_first(data_dir, names)}give the folder that holds "
        "it as --data_dir."
    )


def _unpack_first(data_dir: Path, names: Sequence[str]) -> str:
    packed = [name + suffix for name in names for suffix in ARCHIVES if (data_dir / (name + suffix)).is_file()]
    return f"unpack {packed[0]}, or " if packed else ""


def check_recipe(data: DataSettings, data_dir: Path, mpp: float | None = None) -> None:
    """Raises DatasetError where the recipe does not fit a set of one image-level class.

    mpp: the set's micrometres per pixel, None where that is the user's to say.
    """
    if mpp is not None and data.mpp != mpp:
        raise DatasetError(f"{data_dir} holds images at {mpp} um/px but data.mpp is {data.mpp}: set it to {mpp}.")
    if len(data.class_names) != 1:
        raise DatasetError(
            f"{data_dir} is read as positive and negative patches, which make one class, but the recipe names "
            f"{len(data.class_names)}: give data.class_names one name."
        )


def drawn_or_none(tiles: Sequence[DrawnTile], mpp: float) -> DrawnTiles | None:
    """A source of the tiles, None where there are none: how a split without labels is said."""
    return DrawnTiles(tiles, mpp) if tiles else None
