"""Scores of many images: each, their mean with an interval, pooled, and two predictions against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.label_maps import majority_types
from hovernet_cyclic.core.metrics import (
    DETECTION_RADIUS,
    Float64Array,
    Scores,
    Tally,
    overlap_table,
    sum_tallies,
    tally,
)
from hovernet_cyclic.core.type_scores import TypedTally, type_tally
from hovernet_cyclic.core.types import Annotation, Int64Array

SCORE_NAMES = tuple(item.name for item in dataclasses.fields(Scores))


@dataclass(frozen=True)
class Interval:
    """Means over images with the 95 % interval of a bootstrap over images. S scores, in the order of SCORE_NAMES.

    mean, low, high: float64 (S,). low and high are NaN for fewer than two images.
    """

    mean: Float64Array
    low: Float64Array
    high: Float64Array


@dataclass(frozen=True)
class ScoreTable:
    """Scores of I images. tile_ids, tallies: one per image. typed: one per image, or empty where not asked for."""

    tile_ids: tuple[str, ...]
    tallies: tuple[Tally, ...]
    typed: tuple[TypedTally, ...] = ()

    @cached_property
    def values(self) -> Float64Array:
        """float64 (I, S), in the order of SCORE_NAMES."""
        rows = [list(item.scores().as_dict().values()) for item in self.tallies]
        return np.array(rows, np.float64).reshape(len(rows), len(SCORE_NAMES))

    @property
    def pooled(self) -> Scores:
        """The scores of all the nuclei together, as if the images were one."""
        return sum_tallies(self.tallies).scores()

    @property
    def typed_total(self) -> TypedTally:
        """The type sums of all the images together."""
        return sum(self.typed, TypedTally())

    def interval(self, seed: int = 0, resamples: int = 2000) -> Interval:
        """Mean over images and its bootstrap interval. Raises ValueError without images."""
        return bootstrap_mean(self.values, seed, resamples)


def score_pairs(
    pairs: Iterable[tuple[Annotation, Annotation]],
    with_types: bool = False,
    radius: float = DETECTION_RADIUS,
) -> ScoreTable:
    """Score predictions against the truth, one pair (true, predicted) at a time; neither is kept.

    Maps are as in `Annotation`. with_types: score every type above 0 as well; both sides then need a type_map. radius:
    px, for the pairing of centroids. Raises DatasetError, naming the tile, where shapes differ or types are missing.
    """
    names, tallies, typed = [], [], []
    for true, pred in pairs:
        if true.inst_map.shape != pred.inst_map.shape:
            raise DatasetError(
                f"'{true.tile_id}' has {_size(true)} px but its prediction '{pred.tile_id}' has {_size(pred)}: "
                "predict at the scale of the label map."
            )
        table = overlap_table(true.inst_map, pred.inst_map)
        names.append(true.tile_id)
        tallies.append(tally(table, radius))
        if with_types:
            true_types, pred_types = _types(true, table.true_ids), _types(pred, table.pred_ids)
            typed.append(type_tally(table, true_types, pred_types, radius))
    return ScoreTable(tuple(names), tuple(tallies), tuple(typed))


def paired_difference(first: ScoreTable, second: ScoreTable, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean over images of first minus second, with its bootstrap interval: an image keeps its pair when drawn.

    Raises ValueError unless both score the same images in the same order.
    """
    if first.tile_ids != second.tile_ids:
        raise ValueError("paired_difference needs the same images in the same order")
    return bootstrap_mean(first.values - second.values, seed, resamples)


def bootstrap_mean(values: Float64Array, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean of the rows of values, float64 (I, S), and the percentile interval of that mean (Efron 1979).

    Rows are drawn with replacement, `resamples` times, by a generator seeded with `seed`. Raises ValueError without
    rows.
    """
    count = len(values)
    if count == 0:
        raise ValueError("no image to take a mean of")
    mean: Float64Array = values.mean(axis=0)
    if count < 2:
        unknown = np.full_like(mean, np.nan)
        return Interval(mean, unknown, unknown)
    weights = drawn_images(count, seed, resamples) / count
    low, high = np.percentile(weights @ values, (2.5, 97.5), axis=0)
    return Interval(mean, low, high)


def drawn_images(count: int, seed: int, resamples: int) -> Float64Array:
    """float64 (resamples, count): how often each image is drawn, of `count` draws with replacement."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(count, np.full(count, 1.0 / count), size=resamples).astype(np.float64)


def _types(annotation: Annotation, inst_ids: Int64Array) -> Int64Array:
    if annotation.type_map is None:
        raise DatasetError(f"'{annotation.tile_id}' carries no nucleus types: give a type map, or leave the types out.")
    types = majority_types(annotation.inst_map, annotation.type_map)
    return np.array([types[inst_id][0] for inst_id in inst_ids.tolist()], np.int64)


def _size(annotation: Annotation) -> str:
    return f"{annotation.inst_map.shape[0]} x {annotation.inst_map.shape[1]}"
