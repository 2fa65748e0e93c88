"""Slides that OpenSlide reads: SVS, NDPI, MRXS, SCN, BIF, SVSLIDE, VMS, DICOM, generic tiled TIFF and others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from openslide import OpenSlide, OpenSlideError

from dataloader.readers.faults import damaged, plausible_mpp, read_fault
from hovernet_cyclic.core.errors import SlideError
from hovernet_cyclic.core.geometry import intersect
from hovernet_cyclic.core.types import Box, UInt8Array

_WHITE = (255, 255, 255)
# Where a level is not a whole number of times coarser than level 0, OpenSlide rounds the corner of what it is asked
# for. Asked for these blocks only, it rounds alike whoever asks.
_BLOCK = 1024  # px of the level


class OpenSlideReader:
    """A `SlideReader`. Cropped to the bounds that the file states, as QuPath crops it. Raises SlideError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._slide = _open(path)
        properties = self._slide.properties
        self._downsamples = self._slide.level_downsamples
        self._bounds = _bounds(self._slide)
        self.origin = (self._bounds.left, self._bounds.top)
        self.level_shapes = tuple(
            _cropped(self._bounds, size, down)
            for size, down in zip(self._slide.level_dimensions, self._downsamples, strict=True)
        )
        self.mpp = plausible_mpp(_number(properties, "openslide.mpp-y"), _number(properties, "openslide.mpp-x"))
        self.magnification = _number(properties, "openslide.objective-power")
        self._background = _background(properties.get("openslide.background-color"))

    def read(self, level: int, box: Box) -> UInt8Array:
        """See SlideReader."""
        if self._is_whole(level):
            return self._read(level, box)
        image = np.empty((box.height, box.width, 3), np.uint8)
        for block in _blocks(box, self.level_shapes[level]):
            part = intersect(block, box)
            assert part is not None
            pixels = self._read(level, block)
            image[part.top - box.top : part.bottom - box.top, part.left - box.left : part.right - box.left] = pixels[
                part.top - block.top : part.bottom - block.top, part.left - block.left : part.right - block.left
            ]
        return image

    def close(self) -> None:
        """See SlideReader."""
        self._slide.close()

    def _is_whole(self, level: int) -> bool:
        down = self._downsamples[level]
        return down == round(down) and self.origin[0] % down == 0 and self.origin[1] % down == 0

    def _read(self, level: int, box: Box) -> UInt8Array:
        down = self._downsamples[level]
        corner = (round(box.left * down) + self.origin[0], round(box.top * down) + self.origin[1])
        with self._lock:
            try:
                rgba = np.asarray(self._slide.read_region(corner, level, (box.width, box.height)))
            except OpenSlideError as error:
                fault = read_fault(self.path, level, box, error)
                self._reopen()  # an OpenSlide that has failed once fails ever after
                raise fault from error
        return _flatten(rgba, self._background)

    def _reopen(self) -> None:
        self._slide.close()
        self._slide = _open(self.path)


def is_openslide(path: str) -> bool:
    """Whether OpenSlide knows the format of a file."""
    return OpenSlide.detect_format(path) is not None


def _open(path: str) -> OpenSlide:
    if not Path(path).exists():
        raise SlideError(f"{path} is not there: check the name.")
    try:
        return OpenSlide(path)
    except OpenSlideError as error:
        raise damaged(path, error) from error


def _bounds(slide: OpenSlide) -> Box:
    """The scanned part of level 0, px."""
    width, height = slide.dimensions
    values = [slide.properties.get(f"openslide.bounds-{name}") for name in ("y", "x", "height", "width")]
    if any(value is None for value in values):
        return Box(0, 0, height, width)
    top, left, rows, columns = (int(value or 0) for value in values)
    return intersect(Box(top, left, top + rows, left + columns), Box(0, 0, height, width)) or Box(0, 0, height, width)


def _cropped(bounds: Box, size: tuple[int, int], down: float) -> tuple[int, int]:
    width, height = size
    return max(1, min(height, int(bounds.height / down))), max(1, min(width, int(bounds.width / down)))


def _blocks(box: Box, shape: tuple[int, int]) -> Iterator[Box]:
    for top in range(box.top // _BLOCK * _BLOCK, box.bottom, _BLOCK):
        for left in range(box.left // _BLOCK * _BLOCK, box.right, _BLOCK):
            yield Box(top, left, min(top + _BLOCK, shape[0]), min(left + _BLOCK, shape[1]))


def _flatten(rgba: UInt8Array, background: tuple[int, int, int]) -> UInt8Array:
    """RGB of RGBA, whose transparent pixels (never scanned) take the background's colour."""
    rgb = np.ascontiguousarray(rgba[..., :3])
    seen = rgba[..., 3]
    if not seen.all():
        rgb[seen == 0] = background
    return rgb


def _background(text: str | None) -> tuple[int, int, int]:
    if text is None or len(text) != 6:
        return _WHITE
    red, green, blue = bytes.fromhex(text)
    return red, green, blue


def _number(properties: object, name: str) -> float | None:
    value = properties.get(name)  # type: ignore[attr-defined]
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
