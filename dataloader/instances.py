"""Nuclei given one by one, as masks or outlines, painted into one label map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hovernet_cyclic.core.types import Annotation, BoolArray, Int32Array, Int64Array


class Piece(NamedTuple):
    """One nucleus. mask: bool (h, w), placed with its first pixel at row `top`, column `left`; type_id: its class."""

    mask: BoolArray
    top: int
    left: int
    type_id: int = 0


def piece_of(mask: BoolArray, type_id: int = 0) -> Piece | None:
    """A nucleus from a mask of the whole image, bool (H, W), cut to its box; None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Piece(np.ascontiguousarray(mask[window]), int(rows[0]), int(columns[0]), type_id)


def paint(pieces: Sequence[Piece | None], shape: tuple[int, int], typed: bool = False) -> Annotation:
    """One label map of all pieces: instance k + 1 is pieces[k]; None (an empty mask) takes a number and no pixel.

    Where nuclei overlap, the smaller one keeps the pixels (of equals, the later one), so that none is hidden by a
    larger one. What was empty, shared or hidden is said in the notes. shape: (H, W) px, which every piece lies inside.
    typed: whether to give a type_map, uint8 (H, W), too. tile_id is left empty.
    """
    inst_map = np.zeros(shape, np.int32)
    areas = np.array([0 if piece is None else np.count_nonzero(piece.mask) for piece in pieces], np.int64)
    for k in np.argsort(-areas, kind="stable"):
        piece = pieces[k]
        if piece is not None:
            height, width = piece.mask.shape
            window = inst_map[piece.top : piece.top + height, piece.left : piece.left + width]
            window[piece.mask] = k + 1
    type_map = None
    if typed:
        type_map = np.array([0, *(0 if piece is None else piece.type_id for piece in pieces)], np.uint8)[inst_map]
    return Annotation("", inst_map, type_map, _notes(inst_map, areas))


def _notes(inst_map: Int32Array, areas: Int64Array) -> tuple[str, ...]:
    left = np.bincount(inst_map.ravel(), minlength=len(areas) + 1)[1:]
    empty, cut, hidden = areas == 0, (left < areas) & (left > 0), (left == 0) & (areas > 0)
    notes = []
    if empty.any():
        notes.append(f"{int(empty.sum())} of {len(areas)} masks hold no nucleus")
    if cut.any() or hidden.any():
        shared = int((areas - left).sum())
        notes.append(
            f"{int(cut.sum() + hidden.sum())} of {len(areas)} nuclei lost {shared} px to smaller ones that overlap them"
        )
    if hidden.any():
        notes.append(f"{int(hidden.sum())} nuclei lie wholly under smaller ones and are gone")
    return tuple(notes)
