"""The maps of a slide's windows, as long as a tile still needs them: a strip at the right, one at the bottom."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hovernet_cyclic.core.geometry import intersect, within
from hovernet_cyclic.core.types import Box, RawMaps, UInt8Array

_MAPS = ("np_prob", "hv_map", "type_map", "type_probs")


class Piece(NamedTuple):
    """Part of a slide behind the network. box: in px of the slide; image and maps are of its (H, W)."""

    box: Box
    image: UInt8Array
    raw: RawMaps


def cut(piece: Piece, box: Box) -> Piece | None:
    """The part of a piece that lies in a box, copied; None where none does."""
    common = intersect(piece.box, box)
    if common is None:
        return None
    part = within(common, piece.box)
    maps: dict[str, Any] = {
        name: None if (value := getattr(piece.raw, name)) is None else value[part].copy() for name in _MAPS
    }
    return Piece(common, piece.image[part].copy(), RawMaps(**maps))


def join(pieces: Sequence[Piece], box: Box) -> Piece:
    """One piece of at least one; where there is none the probability of a nucleus is 0 and the image white."""
    image = np.full((box.height, box.width, 3), 255, np.uint8)
    maps: dict[str, Any] = {name: _blank(getattr(pieces[0].raw, name), box) for name in _MAPS}
    for piece in pieces:
        common = intersect(piece.box, box)
        if common is None:
            continue
        here, there = within(common, box), within(common, piece.box)
        image[here] = piece.image[there]
        for name, target in maps.items():
            if target is not None:
                target[here] = getattr(piece.raw, name)[there]
    return Piece(box, image, RawMaps(**maps))


def _blank(like: npt.NDArray[Any] | None, box: Box) -> npt.NDArray[Any] | None:
    """Zeros of a box, of the kind of a map."""
    return None if like is None else np.zeros((box.height, box.width, *like.shape[2:]), like.dtype)


class Strips:
    """What tiles to the right and below will read of the windows so far. Bottom strips wait on disk: they are as long
    as the slide is wide. Used in a `with` block, at whose end they are gone, also where the disk was too full for them.
    """

    def __init__(self, folder: Path, width: int) -> None:
        """folder: for the files, emptied. width: px of a strip, twice the tiles' margin."""
        self._folder, self._width = folder, width
        folder.mkdir(parents=True, exist_ok=True)
        self._empty()
        self._right: dict[tuple[int, int], Piece] = {}
        self._bottom: dict[tuple[int, int], Path] = {}

    def __enter__(self) -> Strips:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a file that cannot be removed is no reason to fail, or to hide one
            self._empty()

    def _empty(self) -> None:
        """Remove the files, those too that were left or half written by a run that was killed."""
        for path in self._folder.glob("*.npz"):
            path.unlink(missing_ok=True)

    def keep(self, row: int, column: int, piece: Piece) -> None:
        """Remember the strips of the window at (row, column) of the grid. Raises OSError."""
        box = piece.box
        right = cut(piece, box._replace(left=max(box.left, box.right - self._width)))
        bottom = cut(piece, box._replace(top=max(box.top, box.bottom - self._width)))
        assert right is not None and bottom is not None
        self._right = {(row, column): right}
        path = self._folder / f"{row}_{column}.npz"
        maps = {name: value for name in _MAPS if (value := getattr(bottom.raw, name)) is not None}
        np.savez(path, box=np.array(bottom.box), image=bottom.image, **maps)
        self._bottom[row, column] = path

    def before(self, row: int, column: int) -> list[Piece]:
        """What there is of the windows to the left, above, and above to the left."""
        above = [self._load((row - 1, one)) for one in (column - 1, column)]
        left = self._right.get((row, column - 1))
        return [piece for piece in (*above, left) if piece is not None]

    def forget_before(self, row: int, column: int) -> None:
        """Drop what the tile at (row, column) was the last to read."""
        for place in [one for one in self._bottom if one < (row - 1, column)]:
            self._bottom.pop(place).unlink(missing_ok=True)

    def _load(self, place: tuple[int, int]) -> Piece | None:
        path = self._bottom.get(place)
        if path is None:
            return None
        with np.load(path) as stored:
            maps = {name: stored.get(name) for name in _MAPS}
            return Piece(Box(*stored["box"].tolist()), stored["image"], RawMaps(**maps))
