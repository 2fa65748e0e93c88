"""Arrays for another process of this machine, without a copy through a pipe."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_STEP = 64  # bytes: arrays begin at multiples of it


class Placed(NamedTuple):
    """An array in a block. start: byte."""

    start: int
    shape: tuple[int, ...]
    dtype: str


class Parcel(NamedTuple):
    """Arrays in a block of shared memory, named so that another process finds them; None for those that are none."""

    block: str
    arrays: tuple[Placed | None, ...]


class SharedBlocks:
    """Blocks of shared memory, used again and again: making one costs more than filling it. For one process."""

    def __init__(self) -> None:
        self._free: list[SharedMemory] = []
        self._lent: dict[str, SharedMemory] = {}

    def put(self, arrays: Sequence[Array | None]) -> Parcel | None:
        """Copy arrays into a block; None where the system has no room for it: a container's /dev/shm is often small."""
        sizes = [0 if array is None else -(-array.nbytes // _STEP) * _STEP for array in arrays]
        block = self._take(max(sum(sizes), 1))
        if block is None:
            return None
        places: list[Placed | None] = []
        start = 0
        for array, size in zip(arrays, sizes, strict=True):
            if array is None:
                places.append(None)
                continue
            places.append(Placed(start, array.shape, array.dtype.str))
            view: Array = np.ndarray(array.shape, array.dtype, block.buf, start)
            view[...] = array
            start += size
        self._lent[block.name] = block
        return Parcel(block.name, tuple(places))

    def take_back(self, parcel: Parcel) -> None:
        """The arrays of a parcel are needed no more."""
        self._free.append(self._lent.pop(parcel.block))

    def close(self) -> None:
        """Give all memory back to the system."""
        for block in (*self._free, *self._lent.values()):
            block.close()
            block.unlink()
        self._free.clear()
        self._lent.clear()

    def _take(self, size: int) -> SharedMemory | None:
        fitting = next((block for block in self._free if block.size >= size), None)
        if fitting is not None:
            self._free.remove(fitting)
            return fitting
        for block in self._free:  # too small ones would only add up
            block.close()
            block.unlink()
        self._free.clear()
        return _new_block(size)


def _new_block(size: int) -> SharedMemory | None:
    try:
        block = SharedMemory(create=True, size=size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENOSYS, errno.EACCES):
            return None
        raise
    # Room is not taken until it is written to, and then a process that finds none is killed: take it now.
    descriptor = getattr(block, "_fd", -1)
    if hasattr(os, "posix_fallocate") and descriptor >= 0:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            block.close()
            block.unlink()
            return None
    return block


class OpenParcel:
    """The arrays of a parcel in the process that it was sent to, until it is closed."""

    def __init__(self, parcel: Parcel) -> None:
        self._parcel = parcel
        self._block = SharedMemory(parcel.block)

    def arrays(self) -> list[Array | None]:
        """The arrays, read-only; they must be let go of before `close`."""
        return [None if place is None else self._view(place) for place in self._parcel.arrays]

    def close(self) -> None:
        """Let the block go; the process that made it frees it."""
        with contextlib.suppress(BufferError):  # an error's traceback may still hold an array
            self._block.close()

    def _view(self, place: Placed) -> Array:
        view: Array = np.ndarray(place.shape, place.dtype, self._block.buf, place.start)
        view.flags.writeable = False
        return view
