"""The benchmark folder: MoNuSeg and CoNSeP images, and `patch_labels.csv`, the image-level supervision.

DATA_DIR/patch_labels.csv              source, name, size, y, x, label, content: a window of a training image per row
DATA_DIR/{monuseg,consep}/images/*.png
DATA_DIR/{monuseg,consep}/splits.csv   name, split, ...
DATA_DIR/{monuseg,consep}/labels/*.png optional; DATA_DIR/consep/class_maps/*.png optional
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloader.datasets.annotated import with_label
from dataloader.datasets.files import DrawnTiles, TileFile
from dataloader.image_cache import ImageCache
from dataloader.images import image_shape, read_rgb
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import DataSplits, Float32Array, ImageTile, LabelledPatch

SOURCES = ("monuseg", "consep")
SPLITS = ("train", "valid", "test")
PATCH_LABELS = {"positive": 1.0, "negative": 0.0}
_WINDOW_COLUMNS = ("source", "name", "size", "y", "x", "label")
_CACHE_BYTES = 256 << 20  # all 39 training images are 117 MB


class ImageFile(NamedTuple):
    """One image of a source: source, name and split as `splits.csv` says, path of its pixels."""

    source: str
    name: str
    split: str
    path: Path


class Window(NamedTuple):
    """An image-level example: rows [top, top + size), columns [left, left + size) of a training image."""

    image: ImageFile
    size: int
    top: int
    left: int
    label: float


class BenchmarkSource:
    """A `TileSource` over training images and their labelled windows. It knows no label map."""

    def __init__(self, data: DataSettings, images: Sequence[ImageFile], windows: Sequence[Window]) -> None:
        self._data = data
        self._images = tuple(images)
        self._windows = tuple(windows)
        self._cache = ImageCache(_CACHE_BYTES)

    @property
    def class_names(self) -> Sequence[str]:
        """Name of the one image-level class."""
        return self._data.class_names

    @property
    def tile_ids(self) -> Sequence[str]:
        """Names of the training images of both sources."""
        return [image.name for image in self._images]

    def read_tile(self, index: int) -> ImageTile:
        """The tile at `index`: image uint8 (H, W, 3) RGB, from disk. Raises DatasetError for a bad image."""
        image = self._images[index]
        return ImageTile(image.name, read_rgb(image.path), self._data.mpp)

    @cached_property
    def patch_labels(self) -> Float32Array:
        """float32 (P, 1): 1 for positive windows, 0 for negative ones."""
        return np.array([[window.label] for window in self._windows], np.float32).reshape(-1, 1)

    @cached_property
    def patch_shapes(self) -> Sequence[tuple[int, int]]:
        """(height, width) px of each of the P windows."""
        return [(window.size, window.size) for window in self._windows]

    @cached_property
    def patch_groups(self) -> Sequence[str]:
        """`source/name` of the image that each of the P windows was cut from."""
        return [f"{window.image.source}/{window.image.name}" for window in self._windows]

    def read_patch(self, index: int) -> LabelledPatch:
        """The window at `index`: image uint8 (size, size, 3) RGB, a copy; labels float32 (1,). Raises DatasetError."""
        image, size, top, left, label = self._windows[index]
        pixels = self._cache.read(image.path)[top : top + size, left : left + size].copy()
        patch_id = f"{image.source}/{image.name}/{size}_{top}_{left}"
        return LabelledPatch(patch_id, pixels, np.array([label], np.float32))


def open_benchmark(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """The benchmark's splits: training on both sources, `valid` and `monuseg_test` of MoNuSeg.

    Opens the tables and image headers, no label file; without `labels` folders the annotated splits are None or left
    out. with_patches: whether to read patch_labels.csv, which then must be there.

    Raises DatasetError (one sentence: file, line and cure).
    """
    images = [image for source in SOURCES for image in _read_splits(data_dir, source)]
    train = [image for image in images if image.split == "train"]
    by_name = {(image.source, image.name): image for image in train}
    windows = list(_read_windows(data_dir / "patch_labels.csv", by_name)) if with_patches else []
    monuseg = [image for image in images if image.source == "monuseg"]
    test = _annotated(data, data_dir, [image for image in monuseg if image.split == "test"])
    return DataSplits(
        train=BenchmarkSource(data, train, windows),
        train_annotated=_annotated(data, data_dir, train),
        valid=_annotated(data, data_dir, [image for image in monuseg if image.split == "valid"]),
        test={} if test is None else {"monuseg_test": test},
    )


def _annotated(data: DataSettings, data_dir: Path, images: Sequence[ImageFile]) -> DrawnTiles | None:
    sources = {image.source for image in images}
    if not images or not all((data_dir / source / "labels").is_dir() for source in sources):
        return None
    types = {source: data_dir / source / "class_maps" for source in sources}
    typed = {source: path for source, path in types.items() if data.type_names and path.is_dir()}
    tiles = [
        with_label(TileFile(image.name, image.path), data_dir / image.source / "labels", typed.get(image.source))
        for image in images
    ]
    return DrawnTiles(tiles, data.mpp)


def _read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist: give the folder of the benchmark as --data_dir.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as a text table: copy it again.") from error
    reader = csv.DictReader(text.splitlines())
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise DatasetError(f"{path} lacks the column {missing[0]}: its first line must name {', '.join(columns)}.")
    for row in reader:
        if any(row[column] is None for column in columns):
            raise DatasetError(f"{path} line {reader.line_num} is cut short: copy the file again.")
        yield reader.line_num, row


def _read_splits(data_dir: Path, source: str) -> Iterator[ImageFile]:
    path = data_dir / source / "splits.csv"
    for line, row in _read_rows(path, ("name", "split")):
        image = ImageFile(source, row["name"], row["split"], data_dir / source / "images" / f"{row['name']}.png")
        if image.split not in SPLITS:
            raise DatasetError(f"{path} line {line} has the split '{image.split}': use one of {', '.join(SPLITS)}.")
        if not image.path.is_file():
            raise DatasetError(f"{path} line {line} names {image.path}, which does not exist: add it or drop the line.")
        yield image


def _read_windows(path: Path, train: Mapping[tuple[str, str], ImageFile]) -> Iterator[Window]:
    shapes: dict[Path, tuple[int, int]] = {}
    seen = set()
    for line, row in _read_rows(path, _WINDOW_COLUMNS):
        window = _window(f"{path} line {line}", row, train)
        image_path = window.image.path
        if image_path not in shapes:
            shapes[image_path] = image_shape(image_path)
        _check_inside(f"{path} line {line}", window, shapes[image_path])
        seen.add(window.label)
        yield window
    if len(seen) < len(PATCH_LABELS):
        raise DatasetError(f"{path} must hold both positive and negative windows: copy the file again.")


def _window(where: str, row: Mapping[str, str], train: Mapping[tuple[str, str], ImageFile]) -> Window:
    image = train.get((row["source"], row["name"]))
    if image is None:
        raise DatasetError(
            f"{where} names {row['source']}/{row['name']}, which is no training image in splits.csv: correct the line."
        )
    if row["label"] not in PATCH_LABELS:
        raise DatasetError(f"{where} has the label '{row['label']}': use one of {', '.join(PATCH_LABELS)}.")
    try:
        size, top, left = (int(row[column]) for column in ("size", "y", "x"))
    except ValueError as error:
        raise DatasetError(f"{where} needs whole numbers as size, y and x: correct the line.") from error
    return Window(image, size, top, left, PATCH_LABELS[row["label"]])


def _check_inside(where: str, window: Window, shape: tuple[int, int]) -> None:
    height, width = shape
    inside = window.size > 0 and 0 <= window.top <= height - window.size and 0 <= window.left <= width - window.size
    if not inside:
        raise DatasetError(
            f"{where} has a window of {window.size} px at row {window.top}, column {window.left}, which is not inside "
            f"the image of {height} x {width} px: correct the line."
        )
