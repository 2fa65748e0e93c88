"""Many nuclei as columns: what a tile's worker hands back, the journal keeps and the writers take."""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hovernet_cyclic.core.types import BoolArray, Box, Float32Array, Int32Array, Int64Array, Nucleus
from infer.measurements import MEASURES

Float64Array = npt.NDArray[np.float64]
UNTYPED = -1


@dataclass(frozen=True)
class NucleusTable:
    """N nuclei, coordinates in px of the slide at the working mpp.

    centroid: float64 (N, 2) x, y, pixel centres at integers. bbox: int32 (N, 4) top, left, bottom, right, half-open.
    points: int32 (P, 2) x, y, the contours one after the other; point_end: int64 (N,), where each ends. corners, int32
    (Q, 2), ring_end, int64 (R,), rings_end, int64 (N,): outlines along pixel edges likewise, as closed rings of which
    a nucleus has one or more. type_id: int16 (N,), -1 for none. type_prob: float64 (N,), NaN for none. type_probs:
    float32 (N, T), T = 0 for none. measures: float64 (N, len(MEASURES)). complete: bool (N,), False where the nucleus
    may depend on how the slide was cut.
    """

    centroid: Float64Array
    bbox: Int32Array
    points: Int32Array
    point_end: Int64Array
    corners: Int32Array
    ring_end: Int64Array
    rings_end: Int64Array
    type_id: npt.NDArray[np.int16]
    type_prob: Float64Array
    type_probs: Float32Array
    measures: Float64Array
    complete: BoolArray

    def __len__(self) -> int:
        return len(self.centroid)

    def contour(self, index: int) -> Int32Array:
        """int32 (K, 2) x, y: see Nucleus."""
        return self.points[_begin(self.point_end, index) : self.point_end[index]]

    def rings(self, index: int) -> Iterator[Int32Array]:
        """int32 (K, 2) x, y of corners, first = last, of each piece."""
        for ring in range(_begin(self.rings_end, index), self.rings_end[index]):
            yield self.corners[_begin(self.ring_end, ring) : self.ring_end[ring]]

    def take(self, indices: Sequence[int] | Int64Array) -> NucleusTable:
        """The nuclei at these positions, in this order."""
        order = np.asarray(indices, np.int64)
        points, point_end = _take_runs(self.points, self.point_end, order)
        ring_order, rings_end = _take_runs(np.arange(len(self.ring_end)), self.rings_end, order)
        corners, ring_end = _take_runs(self.corners, self.ring_end, ring_order)
        plain = {name: getattr(self, name)[order] for name in PLAIN}
        return NucleusTable(
            points=points, point_end=point_end, corners=corners, ring_end=ring_end, rings_end=rings_end, **plain
        )


PLAIN = ("centroid", "bbox", "type_id", "type_prob", "type_probs", "measures", "complete")
_RUNS = {"point_end": "points", "ring_end": "corners", "rings_end": "ring_end"}  # ends -> what they count


class Described:
    """Builds a NucleusTable nucleus by nucleus."""

    def __init__(self, nr_types: int) -> None:
        """nr_types: T of type_probs, 0 for none."""
        self._nr_types = nr_types
        self._rows: list[tuple[Nucleus, Sequence[Int32Array], tuple[float, ...], bool]] = []

    def add(self, nucleus: Nucleus, rings: Sequence[Int32Array], measures: tuple[float, ...], complete: bool) -> None:
        """nucleus: in px of the slide. rings: int32 (K, 2) x, y each, closed, in the same."""
        self._rows.append((nucleus, rings, measures, complete))

    def table(self) -> NucleusTable:
        """All that was added, in order."""
        nuclei = [row[0] for row in self._rows]
        rings = [ring for row in self._rows for ring in row[1]]
        count = len(nuclei)
        probs = [nucleus.type_probs for nucleus in nuclei if nucleus.type_probs is not None]
        return NucleusTable(
            centroid=np.array([nucleus.centroid for nucleus in nuclei], np.float64).reshape(count, 2),
            bbox=np.array([nucleus.bbox for nucleus in nuclei], np.int32).reshape(count, 4),
            points=_stacked([nucleus.contour for nucleus in nuclei]),
            point_end=_ends([len(nucleus.contour) for nucleus in nuclei]),
            corners=_stacked(rings),
            ring_end=_ends([len(ring) for ring in rings]),
            rings_end=_ends([len(row[1]) for row in self._rows]),
            type_id=np.array([UNTYPED if one.type_id is None else one.type_id for one in nuclei], np.int16),
            type_prob=np.array([np.nan if one.type_prob is None else one.type_prob for one in nuclei], np.float64),
            type_probs=np.array(probs, np.float32).reshape(count, self._nr_types if probs or not count else 0),
            measures=np.array([row[2] for row in self._rows], np.float64).reshape(count, len(MEASURES)),
            complete=np.array([row[3] for row in self._rows], np.bool_),
        )


def concatenate(tables: Sequence[NucleusTable]) -> NucleusTable:
    """All nuclei of at least one table, in order."""
    columns = {
        name: np.concatenate([getattr(table, name) for table in tables]) for name in [*PLAIN, "points", "corners"]
    }
    for ends, counted in _RUNS.items():
        before = np.cumsum([0, *(len(getattr(table, counted)) for table in tables)])
        columns[ends] = np.concatenate([getattr(one, ends) + begin for one, begin in zip(tables, before, strict=False)])
    return NucleusTable(**columns)


def to_bytes(table: NucleusTable) -> bytes:
    """A table for the journal."""
    stream = io.BytesIO()
    np.savez(stream, **{field.name: getattr(table, field.name) for field in dataclasses.fields(table)})
    return zlib.compress(stream.getvalue(), 1)


def from_bytes(data: bytes) -> NucleusTable:
    """What `to_bytes` made."""
    with np.load(io.BytesIO(zlib.decompress(data)), allow_pickle=False) as stored:
        return NucleusTable(**{name: stored[name] for name in stored.files})


def shifted(nucleus: Nucleus, box: Box, centroid: tuple[float, float], left: int, top: int) -> Nucleus:
    """The nucleus of a cut-out in px of the slide. box: of the nucleus, in these; (left, top): of the cut-out."""
    contour = nucleus.contour + np.array([left, top], np.int32)
    return dataclasses.replace(nucleus, bbox=box, centroid=centroid, contour=contour)


def _begin(ends: Int64Array, index: int) -> int:
    return int(ends[index - 1]) if index else 0


def _take_runs(values: npt.NDArray[Any], ends: Int64Array, order: Int64Array) -> tuple[npt.NDArray[Any], Int64Array]:
    """The runs of `values` that end at `ends`, in another order, and where they end there."""
    begins = np.concatenate([np.zeros(1, np.int64), ends])[order]
    lengths = ends[order] - begins
    new_ends = np.cumsum(lengths)
    offsets = np.arange(int(new_ends[-1]) if len(order) else 0) - np.repeat(new_ends - lengths, lengths)
    return values[np.repeat(begins, lengths) + offsets], new_ends


def _stacked(arrays: Sequence[npt.NDArray[np.integer]]) -> Int32Array:
    return np.asarray(np.concatenate([np.zeros((0, 2), np.int32), *arrays]), np.int32)


def _ends(lengths: Sequence[int]) -> Int64Array:
    return np.cumsum(np.array(lengths, np.int64), dtype=np.int64)
