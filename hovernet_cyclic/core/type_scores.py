"""Scores of nuclei with types, from the same table of overlaps as `metrics`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from hovernet_cyclic.core.metrics import (
    DETECTION_RADIUS,
    EPSILON,
    MATCH_IOU,
    OverlapTable,
    paired_centroids,
)
from hovernet_cyclic.core.types import Int64Array


@dataclass(frozen=True)
class TypeTally:
    """Sums for one type c; `+` pools two of them.

    matched, matched_iou: pairs of IoU > 0.5 with c on both sides, and their summed IoU. true_nuclei, pred_nuclei: those
    of type c. Of nuclei whose centroids are paired: agree (c, c), claimed (another type called c), denied (c called
    another type). Of the unpaired: missed (true c), spurious (predicted c).
    """

    matched: int = 0
    matched_iou: float = 0.0
    true_nuclei: int = 0
    pred_nuclei: int = 0
    agree: int = 0
    claimed: int = 0
    denied: int = 0
    missed: int = 0
    spurious: int = 0

    def __add__(self, other: TypeTally) -> TypeTally:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return TypeTally(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def pq(self) -> float | None:
        """Panoptic quality within the type, in [0, 1]; None where neither map has a nucleus of it."""
        nuclei = self.true_nuclei + self.pred_nuclei
        return None if nuclei == 0 else 2.0 * self.matched / nuclei * (self.matched_iou / (self.matched + EPSILON))

    @property
    def f1(self) -> float | None:
        """F_c^d of hover_net (`compute_stats.py`, weights 2, 2, 1, 1); None where neither map has a nucleus of c.

        2 agree / (2 agree + 2 claimed + 2 denied + missed + spurious): the reference's true negatives are zero, as
        it only looks at pairs in which c occurs.
        """
        double = 2 * self.agree
        whole = double + 2 * self.claimed + 2 * self.denied + self.missed + self.spurious
        return None if whole == 0 else double / whole


@dataclass(frozen=True)
class TypedTally:
    """Sums of all the types. types: type_id -> TypeTally. paired: pairs of centroids; right: those of equal type."""

    types: Mapping[int, TypeTally] = field(default_factory=dict)
    paired: int = 0
    right: int = 0

    def __add__(self, other: TypedTally) -> TypedTally:
        both = sorted({*self.types, *other.types})
        empty = TypeTally()
        types = {c: self.types.get(c, empty) + other.types.get(c, empty) for c in both}
        return TypedTally(types, self.paired + other.paired, self.right + other.right)

    @property
    def mpq(self) -> float | None:
        """Mean PQ over the types of which truth or prediction has a nucleus; None where there is no such type.

        Of a single image: PanNuke's mPQ, but a type that was only predicted counts 0 and is not passed over. Of the sum
        over images: CoNIC's mPQ+.
        """
        return _mean(type_tally.pq for type_tally in self.types.values())

    @property
    def accuracy(self) -> float | None:
        """Share of paired nuclei whose types agree; None without pairs."""
        return self.right / self.paired if self.paired else None


def type_tally(
    table: OverlapTable,
    true_types: Int64Array,
    pred_types: Int64Array,
    radius: float = DETECTION_RADIUS,
) -> TypedTally:
    """The sums for each type above 0 that truth or prediction has.

    true_types: int64 (N,), type of each of table.true_ids; pred_types: int64 (M,) likewise. Nuclei are paired by
    centroid whatever their types, within radius px, then their types are compared, as in hover_net's
    `compute_stats.py` (an image without nuclei adds no made-up one, as it does there).
    """
    rows, columns = paired_centroids(table.true_centroids, table.pred_centroids, radius)
    lone_true, lone_pred = np.delete(true_types, rows), np.delete(pred_types, columns)
    first, second = true_types[rows], pred_types[columns]
    iou = table.pair_iou
    met_true, met_pred = true_types[table.pair_true], pred_types[table.pair_pred]
    types = {}
    for c in np.union1d(true_types, pred_types):
        if c == 0:
            continue
        matched = (iou > MATCH_IOU) & (met_true == c) & (met_pred == c)
        types[int(c)] = TypeTally(
            matched=int(matched.sum()),
            matched_iou=float(iou[matched].sum()),
            true_nuclei=int((true_types == c).sum()),
            pred_nuclei=int((pred_types == c).sum()),
            agree=int(((first == c) & (second == c)).sum()),
            claimed=int(((first != c) & (second == c)).sum()),
            denied=int(((first == c) & (second != c)).sum()),
            missed=int((lone_true == c).sum()),
            spurious=int((lone_pred == c).sum()),
        )
    return TypedTally(types, paired=len(rows), right=int((first == second).sum()))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
