"""A plain PNG, JPEG or BMP as a slide of one level. It is decoded once and kept: such files have no parts to read."""

from __future__ import annotations

from dataloader.images import read_rgb
from hovernet_cyclic.core.errors import DatasetError, SlideError
from hovernet_cyclic.core.types import Box, UInt8Array


class ImageReader:
    """A `SlideReader`. Such a file states no mpp. Raises SlideError for one that `read_rgb` refuses."""

    mpp: tuple[float, float] | None = None
    magnification: float | None = None
    origin: tuple[int, int] = (0, 0)

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._image = read_rgb(path)
        except DatasetError as error:
            raise SlideError(str(error)) from error
        self.level_shapes: tuple[tuple[int, int], ...] = ((self._image.shape[0], self._image.shape[1]),)

    def read(self, level: int, box: Box) -> UInt8Array:
        """See SlideReader."""
        return self._image[box.top : box.bottom, box.left : box.right].copy()

    def close(self) -> None:
        """See SlideReader."""
