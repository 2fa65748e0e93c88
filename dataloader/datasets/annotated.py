"""Tiles with drawn masks. A label file is opened by `annotation` alone, never to build the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dataloader.images import image_shape, list_images, read_rgb
from dataloader.label_files import LABEL_SUFFIXES, read_label_map
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import Annotation, ImageTile


class AnnotatedFile(NamedTuple):
    """One tile on disk. label_dir and type_dir hold a file of the image's stem; type_dir is None without types."""

    tile_id: str
    image_path: Path
    label_dir: Path
    type_dir: Path | None = None


class AnnotatedTiles:
    """An `AnnotatedSource` over image files and folders of label maps."""

    def __init__(self, files: Sequence[AnnotatedFile], mpp: float) -> None:
        self._files = tuple(files)
        self._mpp = mpp

    @property
    def tile_ids(self) -> Sequence[str]:
        """Names of the tiles."""
        return [file.tile_id for file in self._files]

    def read_tile(self, index: int) -> ImageTile:
        """The tile at `index`: image uint8 (H, W, 3) RGB, read from disk. Raises DatasetError for a bad image."""
        file = self._files[index]
        return ImageTile(file.tile_id, read_rgb(file.image_path), self._mpp)

    def annotation(self, index: int) -> Annotation:
        """The drawn masks of the tile at `index`: opens its label file.

        inst_map int32 (H, W); type_map uint8 (H, W), or None. Raises DatasetError for a label that is missing, bad,
        or not of the image's size.
        """
        file = self._files[index]
        label_path = _label_file(file, file.label_dir)
        type_path = None if file.type_dir is None else _label_file(file, file.type_dir)
        label = read_label_map(label_path, type_path)
        height, width = image_shape(file.image_path)
        if label.inst_map.shape != (height, width):
            rows, columns = label.inst_map.shape
            raise DatasetError(
                f"{label_path} has {rows} x {columns} px but {file.image_path} has {height} x {width} px: "
                "give the label map of this image."
            )
        return replace(label, tile_id=file.tile_id)


def tiles_with_labels(image_dir: Path, label_dir: Path, mpp: float) -> AnnotatedTiles | None:
    """The images of `image_dir` with the label maps of `label_dir`, or None where there is no such label folder.

    Opens no file. Raises DatasetError where labels lie beside a missing or empty folder of images.
    """
    if not label_dir.is_dir():
        return None
    return AnnotatedTiles([AnnotatedFile(path.stem, path, label_dir) for path in unique_stems(image_dir)], mpp)


def unique_stems(image_dir: Path) -> list[Path]:
    """Image files of a folder, sorted by name. Raises DatasetError where two share a stem: stems name tiles."""
    found: dict[str, Path] = {}
    for path in list_images(image_dir):
        other = found.setdefault(path.stem, path)
        if other is not path:
            raise DatasetError(f"{other} and {path} have one name: rename or remove one of them.")
    return list(found.values())


def _label_file(file: AnnotatedFile, folder: Path) -> Path:
    for suffix in LABEL_SUFFIXES:
        path = folder / f"{file.image_path.stem}{suffix}"
        if path.is_file():
            return path
    raise DatasetError(
        f"{file.image_path} has no label map in {folder}: add {file.image_path.stem}.png, or remove the image."
    )
