"""TIFF through tifffile: OME-TIFF with its pyramid, ImageJ's, and plain TIFF, tiled or in strips."""

from __future__ import annotations

import logging
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from dataloader.readers.faults import damaged, is_remote, plausible_mpp, read_fault
from hovernet_cyclic.core.errors import SlideError
from hovernet_cyclic.core.types import Box, UInt8Array

# A fault that keeps a file from being read is told by us, with its cure. What tifffile logs is for who listens to it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3, "in": 25400.0}
_UM_OF_RESOLUTION_UNIT = {2: 25400.0, 3: 10000.0}  # TIFF's inch and centimetre
_WHITE = 255


class TiffReader:
    """A `SlideReader` of the largest RGB series of a file, which may be remote (s3://, gs://, https://).

    Raises SlideError for what is no 8-bit RGB TIFF.
    """

    origin = (0, 0)

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._file = tifffile.TiffFile(_stream(path))
            series = max(self._file.series, key=lambda one: one.size)
            self._pages: list[Any] = [_first_page(level) for level in series.levels]
        except Exception as error:  # a damaged header makes tifffile fail in many ways
            raise damaged(path, error) from error
        self._pages = [self._pages[0], *(page for page in self._pages[1:] if _is_rgb(page))]
        if not _is_rgb(self._pages[0]):
            page = self._pages[0]
            raise SlideError(f"{path} holds {page.dtype} {page.shape}, not 8-bit RGB: export it as that.")
        self.level_shapes = tuple((page.imagelength, page.imagewidth) for page in self._pages)
        pixels = _ome_pixels(self._file)
        self.mpp = _ome_mpp(pixels) or _resolution_mpp(self._pages[0])
        self.magnification: float | None = None

    def read(self, level: int, box: Box) -> UInt8Array:
        """See SlideReader."""
        page = self._pages[level]
        image = np.full((box.height, box.width, 3), _WHITE, np.uint8)
        try:
            for index in _segments(page, box):
                _place(image, box, self._decoded(page, index))
        except Exception as error:  # each codec fails in its own way
            raise read_fault(self.path, level, box, error) from error
        return image

    def close(self) -> None:
        """See SlideReader."""
        self._file.close()

    def _decoded(self, page: tifffile.TiffPage, index: int) -> tuple[npt.NDArray[Any] | None, int, int]:
        """(pixels (h, w, 3) or None for a sparse segment, its top row, its left column)."""
        count = page.databytecounts[index]
        if count == 0:
            data: bytes | None = None
        else:
            with self._lock:
                self._file.filehandle.seek(page.dataoffsets[index])
                data = self._file.filehandle.read(count)
            if len(data) < count:
                raise EOFError("the file ends before it")
        segment, (*_, row, column, _), _ = page.decode(data, index, jpegtables=page.jpegtables)
        return (None if segment is None else segment[0]), int(row), int(column)


def is_ome_tiff(path: str) -> bool:
    """Whether a file is a TIFF with OME-XML in it."""
    try:
        with tifffile.TiffFile(_stream(path)) as file:
            return bool(file.is_ome)
    except Exception:  # whatever is wrong with it, it is not that
        return False


def _stream(path: str) -> Any:
    if not is_remote(path):
        if not Path(path).exists():
            raise SlideError(f"{path} is not there: check the name.")
        return path
    import fsspec

    return fsspec.open(path, "rb").open()


def _first_page(level: Any) -> Any:
    return level.pages[0].aspage()


def _is_rgb(page: tifffile.TiffPage) -> bool:
    shape = page.shape
    return len(shape) == 3 and shape[2] in (3, 4) and page.dtype == np.uint8 and page.planarconfig == 1


def _segments(page: tifffile.TiffPage, box: Box) -> Iterator[int]:
    """Indices of the tiles or strips that a box touches."""
    rows, columns = page.chunks[0], page.chunks[1]
    across = -(-page.imagewidth // columns)
    for row in range(box.top // rows, -(-box.bottom // rows)):
        for column in range(box.left // columns, -(-box.right // columns)):
            yield row * across + column


def _place(image: UInt8Array, box: Box, decoded: tuple[npt.NDArray[Any] | None, int, int]) -> None:
    segment, row, column = decoded
    if segment is None:
        return
    top, left = max(row, box.top), max(column, box.left)
    bottom, right = min(row + segment.shape[0], box.bottom), min(column + segment.shape[1], box.right)
    image[top - box.top : bottom - box.top, left - box.left : right - box.left] = segment[
        top - row : bottom - row, left - column : right - column, :3
    ]


def _ome_pixels(file: tifffile.TiffFile) -> dict[str, str]:
    """The attributes of the first Pixels element of OME-XML; empty where there is none."""
    if not file.is_ome or not file.ome_metadata:
        return {}
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError:
        return {}  # its pixels may be whole: then it is the scale alone that has to be given
    for element in root.iter():
        if element.tag.rpartition("}")[2] == "Pixels":
            return dict(element.attrib)
    return {}


def _ome_mpp(pixels: dict[str, str]) -> tuple[float, float] | None:
    try:
        down, across = (
            float(pixels[f"PhysicalSize{axis}"]) * _UM[pixels.get(f"PhysicalSize{axis}Unit", "µm")] for axis in "YX"
        )
    except (KeyError, ValueError):  # not told, in a unit that is no length, or no number
        return None
    return plausible_mpp(down, across)


def _resolution_mpp(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """From TIFF's own resolution tags, pixels per inch or centimetre."""
    unit = page.tags.get("ResolutionUnit")
    length = _UM_OF_RESOLUTION_UNIT.get(0 if unit is None else int(unit.value))
    sizes = []
    for name in ("YResolution", "XResolution"):
        tag = page.tags.get(name)
        if tag is None or length is None or tag.value[0] == 0:
            return None
        sizes.append(length * tag.value[1] / tag.value[0])
    return plausible_mpp(*sizes)
