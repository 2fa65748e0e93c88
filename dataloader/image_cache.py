"""Decoded images kept in memory, up to a number of bytes: windows of one image are read many times."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock

from dataloader.images import read_rgb
from hovernet_cyclic.core.types import UInt8Array


class ImageCache:
    """Least-recently-used cache of `read_rgb`, for any number of threads.

    A pickled copy starts empty, so worker processes are not sent pixels.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[Path, UInt8Array] = OrderedDict()
        self._lock = Lock()

    def read(self, path: Path) -> UInt8Array:
        """uint8 (H, W, 3) RGB of a file, read-only: copy what is to be changed. Raises DatasetError."""
        with self._lock:
            image = self._images.pop(path, None)
        if image is None:
            image = read_rgb(path)
            image.setflags(write=False)
        with self._lock:
            self._images[path] = image
            while len(self._images) > 1 and sum(kept.nbytes for kept in self._images.values()) > self._max_bytes:
                self._images.popitem(last=False)
        return image

    def __getstate__(self) -> dict[str, object]:
        return {"_max_bytes": self._max_bytes}

    def __setstate__(self, state: dict[str, int]) -> None:
        self._max_bytes, self._images, self._lock = state["_max_bytes"], OrderedDict(), Lock()
