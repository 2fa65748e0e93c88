"""Scores of one instance map against another, all from one sparse table of overlaps.

Three steps: `overlap_table` counts pixels once, `tally` turns the counts into sums, `Tally.scores` divides. Tallies
add up, so scores pooled over images are `sum_tallies(...).scores()`.

The arithmetic is that of vqdang/hover_net `metrics/stats_utils.py`, its 1e-6 terms included (so SQ of a perfect
prediction of N nuclei is N / (N + 1e-6)). Ids need not be contiguous: only their order counts, and only for ties.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from hovernet_cyclic.core.label_maps import instance_areas, instance_indices
from hovernet_cyclic.core.runs import LabelArray
from hovernet_cyclic.core.types import Int64Array

Float64Array = npt.NDArray[np.float64]

EPSILON = 1.0e-6
MATCH_IOU = 0.5
DETECTION_RADIUS = 12.0

# Up to this many possible pairs a dense count is cheaper than sorting the pixels.
_DENSE_PAIRS = 1 << 24


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1], 1 is best.

    dice: foreground Dice. dice2: Dice summed over every overlapping pair of nuclei ("ensemble"). aji: Kumar's
    aggregated Jaccard index. aji_plus: AJI with one-to-one pairs. dq, sq, pq: detection, segmentation and panoptic
    quality at IoU > 0.5. iou: foreground IoU (what the published Cyclic Learning code calls AJI). f1d: F1 of centroids
    paired within a radius.
    """

    dice: float
    dice2: float
    aji: float
    aji_plus: float
    dq: float
    sq: float
    pq: float
    iou: float
    f1d: float

    def as_dict(self) -> dict[str, float]:
        """Name -> score, in the order above."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Tally:
    """The sums behind `Scores`; px for the first nine, then counts. `+` pools two of them."""

    true_pixels: int = 0
    pred_pixels: int = 0
    common_pixels: int = 0
    dice2_inter: int = 0
    dice2_total: int = 0
    aji_inter: int = 0
    aji_union: int = 0
    aji_plus_inter: int = 0
    aji_plus_union: int = 0
    matched: int = 0
    matched_iou: float = 0.0
    detected: int = 0
    true_nuclei: int = 0
    pred_nuclei: int = 0

    def __add__(self, other: Tally) -> Tally:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Tally(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def scores(self) -> Scores:
        """The scores. No nucleus in truth nor prediction: all 1. Nuclei in one of the two only: all 0."""
        if self.true_nuclei + self.pred_nuclei == 0:
            return Scores(*(1.0 for _ in dataclasses.fields(Scores)))
        pixels = self.true_pixels + self.pred_pixels
        nuclei = self.true_nuclei + self.pred_nuclei
        dq = 2.0 * self.matched / nuclei
        sq = self.matched_iou / (self.matched + EPSILON)
        return Scores(
            dice=2.0 * self.common_pixels / pixels,
            dice2=2.0 * self.dice2_inter / max(self.dice2_total, 1),
            aji=self.aji_inter / self.aji_union,
            aji_plus=self.aji_plus_inter / self.aji_plus_union,
            dq=dq,
            sq=sq,
            pq=dq * sq,
            iou=self.common_pixels / (pixels - self.common_pixels),
            f1d=2.0 * self.detected / nuclei,
        )


@dataclass(frozen=True)
class OverlapTable:
    """Which nuclei of the truth (N) meet which of the prediction (M), K pairs in all.

    true_ids (N,), pred_ids (M,): int64, ascending inst_ids. true_areas (N,), pred_areas (M,): int64 px.
    true_centroids (N, 2), pred_centroids (M, 2): float64, x then y, px. pair_true, pair_pred: int64 (K,), positions in
    true_ids and pred_ids, sorted by the former, then the latter. pair_inter: int64 (K,), common px, >= 1.
    """

    true_ids: Int64Array
    pred_ids: Int64Array
    true_areas: Int64Array
    pred_areas: Int64Array
    true_centroids: Float64Array
    pred_centroids: Float64Array
    pair_true: Int64Array
    pair_pred: Int64Array
    pair_inter: Int64Array

    @property
    def pair_union(self) -> Int64Array:
        """int64 (K,): px in either nucleus of each pair."""
        union: Int64Array = self.true_areas[self.pair_true] + self.pred_areas[self.pair_pred] - self.pair_inter
        return union

    @property
    def pair_iou(self) -> Float64Array:
        """float64 (K,): intersection over union of each pair, in (0, 1]."""
        iou: Float64Array = self.pair_inter / self.pair_union
        return iou


def overlap_table(true_map: LabelArray, pred_map: LabelArray) -> OverlapTable:
    """Count, in one pass over the pixels, which instances overlap and by how much.

    true_map, pred_map: integer (H, W), 0 background. Raises ValueError where their shapes differ, ids are negative, or
    they are no maps of integers.
    """
    for name, inst_map in (("true_map", true_map), ("pred_map", pred_map)):
        if inst_map.ndim != 2 or inst_map.dtype.kind not in "iu":
            raise ValueError(f"{name} is {inst_map.dtype} {inst_map.shape}: give integers (H, W)")
    if true_map.shape != pred_map.shape:
        raise ValueError(f"true_map {true_map.shape} and pred_map {pred_map.shape} differ in shape")
    true_ids, true_areas = instance_areas(true_map)
    pred_ids, pred_areas = instance_areas(pred_map)
    true_index = instance_indices(true_map, true_ids)
    pred_index = instance_indices(pred_map, pred_ids)
    pair_true, pair_pred, pair_inter = _pairs(true_index, pred_index, len(true_ids), len(pred_ids))
    return OverlapTable(
        true_ids=true_ids,
        pred_ids=pred_ids,
        true_areas=true_areas,
        pred_areas=pred_areas,
        true_centroids=_centroids(true_index, true_areas),
        pred_centroids=_centroids(pred_index, pred_areas),
        pair_true=pair_true,
        pair_pred=pair_pred,
        pair_inter=pair_inter,
    )


def tally(table: OverlapTable, radius: float = DETECTION_RADIUS) -> Tally:
    """The sums behind every score. radius: px, for the pairing of centroids."""
    union = table.pair_union
    iou = table.pair_iou
    matched = iou > MATCH_IOU
    aji_inter, aji_union = _aggregate(table, best_pairs(table))
    plus_inter, plus_union = _aggregate(table, exclusive_pairs(table))
    return Tally(
        true_pixels=int(table.true_areas.sum()),
        pred_pixels=int(table.pred_areas.sum()),
        common_pixels=int(table.pair_inter.sum()),
        dice2_inter=int(table.pair_inter.sum()),
        dice2_total=int(union.sum() + table.pair_inter.sum()),
        aji_inter=aji_inter,
        aji_union=aji_union,
        aji_plus_inter=plus_inter,
        aji_plus_union=plus_union,
        matched=int(matched.sum()),
        matched_iou=float(iou[matched].sum()),
        detected=len(paired_centroids(table.true_centroids, table.pred_centroids, radius)[0]),
        true_nuclei=len(table.true_ids),
        pred_nuclei=len(table.pred_ids),
    )


def score(true_map: LabelArray, pred_map: LabelArray, radius: float = DETECTION_RADIUS) -> Scores:
    """All scores of one predicted map against the true one.

    true_map, pred_map: integer (H, W), 0 background, any positive ids. radius: px. Every score is finite: 1 where both
    maps are empty, 0 where just one is. Raises ValueError as `overlap_table`.
    """
    return tally(overlap_table(true_map, pred_map), radius).scores()


def sum_tallies(tallies: Iterable[Tally]) -> Tally:
    """All the images as if they were one: their nuclei side by side."""
    return sum(tallies, Tally())


def best_pairs(table: OverlapTable) -> Int64Array:
    """int64 (P,): for each true nucleus that is met at all, the position of its pair of highest IoU.

    Of equals the prediction of lowest id; a prediction may serve many true nuclei, as in Kumar's AJI (Kumar et al.
    2017, algorithm 1).
    """
    order = np.lexsort((-_soft_iou(table), table.pair_true))
    first = np.diff(table.pair_true[order], prepend=-1) > 0
    best: Int64Array = order[first]
    return best


def exclusive_pairs(table: OverlapTable) -> Int64Array:
    """int64 (P,): positions of pairs, one to one, whose IoU adds up to the most (hover_net's AJI+).

    Nuclei that are linked by no chain of overlaps cannot compete, so each linked group is solved by itself.
    """
    size = len(table.true_ids) + len(table.pred_ids)
    nodes = table.pair_pred + len(table.true_ids)
    links = coo_array((np.ones(len(nodes), np.int8), (table.pair_true, nodes)), shape=(size, size))
    groups = connected_components(links, directed=False)[1][table.pair_true]
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    iou = _soft_iou(table)
    chosen = [_solve_group(table, iou, members) for members in np.split(order, starts[1:])]
    return np.concatenate(chosen)


def paired_centroids(true_points: Float64Array, pred_points: Float64Array, radius: float) -> tuple[Any, Any]:
    """Pair points one to one by the least total distance, then drop pairs further apart than `radius`.

    true_points (N, 2), pred_points (M, 2): x, y in px. Returns positions int64 (P,) in the first and (P,) in the
    second. This is hover_net's `pair_coordinates`: the distance is not capped before pairing. Holds N x M floats.
    """
    if len(true_points) == 0 or len(pred_points) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    distance = cdist(true_points, pred_points)
    rows, columns = linear_sum_assignment(distance)
    near = distance[rows, columns] <= radius
    return rows[near], columns[near]


def _pairs(
    true_index: npt.NDArray[np.int32], pred_index: npt.NDArray[np.int32], true_count: int, pred_count: int
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Positions (from 0) and common px of every pair that meets, from maps (H, W) of positions + 1."""
    both = np.flatnonzero((true_index > 0) & (pred_index > 0))
    codes = (true_index.ravel()[both].astype(np.int64) - 1) * pred_count + pred_index.ravel()[both] - 1
    if true_count * pred_count <= _DENSE_PAIRS:
        counts = np.bincount(codes)
        found = np.flatnonzero(counts)
        inter = counts[found]
    else:
        found, inter = np.unique(codes, return_counts=True)
    return found // max(pred_count, 1), found % max(pred_count, 1), inter


def _centroids(index: npt.NDArray[np.int32], areas: Int64Array) -> Float64Array:
    """float64 (N, 2), x then y, from a map (H, W) of positions + 1."""
    flat = np.flatnonzero(index)
    label = index.ravel()[flat] - 1
    rows, columns = np.divmod(flat, max(index.shape[1], 1))
    sums = [np.bincount(label, weights=values, minlength=len(areas)) for values in (columns, rows)]
    return np.stack(sums, axis=1) / areas[:, None]


def _soft_iou(table: OverlapTable) -> Float64Array:
    """float64 (K,): IoU as the reference's AJI ranks pairs by, with 1e-6 px added to the union."""
    ranked: Float64Array = table.pair_inter / (table.pair_union + EPSILON)
    return ranked


def _aggregate(table: OverlapTable, pairs: Int64Array) -> tuple[int, int]:
    """Intersection and union, px, summed over the pairs; nuclei in no pair add their area to the union."""
    lone_true = np.ones(len(table.true_ids), bool)
    lone_pred = np.ones(len(table.pred_ids), bool)
    lone_true[table.pair_true[pairs]] = False
    lone_pred[table.pair_pred[pairs]] = False
    lone = table.true_areas[lone_true].sum() + table.pred_areas[lone_pred].sum()
    return int(table.pair_inter[pairs].sum()), int(table.pair_union[pairs].sum() + lone)


def _solve_group(table: OverlapTable, iou: Float64Array, members: Int64Array) -> Int64Array:
    """Positions of the best one-to-one pairs among `members`, all the pairs of one linked group."""
    if len(members) < 2:
        return members
    true, row = np.unique(table.pair_true[members], return_inverse=True)
    pred, column = np.unique(table.pair_pred[members], return_inverse=True)
    gain = np.zeros((len(true), len(pred)))
    gain[row, column] = iou[members]
    position = np.full(gain.shape, -1, np.int64)
    position[row, column] = members
    chosen: Int64Array = position[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]
