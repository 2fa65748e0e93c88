"""Tiles whose drawn masks lie in a folder beside them, by name. A label file is opened by `annotation` alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dataloader.datasets.files import DrawnTile, DrawnTiles, TileFile
from dataloader.images import list_images
from dataloader.label_files import LABEL_SUFFIXES, read_label_map
from dataloader.outlines import OUTLINE_SUFFIXES, read_outlines
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import Annotation


def tiles_with_labels(
    image_dir: Path, label_dir: Path, mpp: float, type_names: Sequence[str] = ()
) -> DrawnTiles | None:
    """The images of `image_dir` with the label maps or outlines of `label_dir`, or None without such a folder.

    type_names: names of the types of outlines. Opens no file. Raises DatasetError where labels lie beside a missing or
    empty folder of images.
    """
    if not label_dir.is_dir():
        return None
    files = [TileFile(path.stem, path) for path in unique_stems(image_dir)]
    return DrawnTiles([with_label(file, label_dir, type_names=type_names) for file in files], mpp)


def with_label(
    file: TileFile, label_dir: Path, type_dir: Path | None = None, type_names: Sequence[str] = ()
) -> DrawnTile:
    """A tile and the label of its name in `label_dir`. type_dir: folder of type maps, which then count."""
    return DrawnTile(file, label_dir, partial(_draw, file.path, (label_dir, type_dir), type_names))


def unique_stems(image_dir: Path) -> list[Path]:
    """Image files of a folder, sorted by name. Raises DatasetError where two share a stem: stems name tiles."""
    found: dict[str, Path] = {}
    for path in list_images(image_dir):
        other = found.setdefault(path.stem, path)
        if other is not path:
            raise DatasetError(f"{other} and {path} have one name: rename or remove one of them.")
    return list(found.values())


def label_file(image_path: Path, folder: Path) -> Path:
    """The label map or file of outlines of an image's name in `folder`. Raises DatasetError where there is none."""
    for suffix in (*LABEL_SUFFIXES, *OUTLINE_SUFFIXES):
        path = folder / f"{image_path.stem}{suffix}"
        if path.is_file():
            return path
    raise DatasetError(f"{image_path} has no label map in {folder}: add {image_path.stem}.png, or remove the image.")


def _draw(
    image_path: Path, folders: tuple[Path, Path | None], type_names: Sequence[str], shape: tuple[int, int]
) -> Annotation:
    label_dir, type_dir = folders
    path = label_file(image_path, label_dir)
    if path.suffix.lower() in OUTLINE_SUFFIXES:
        return read_outlines(path, shape, type_names)
    return read_label_map(path, None if type_dir is None else label_file(image_path, type_dir))
