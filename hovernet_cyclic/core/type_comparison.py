"""Type scores of many images: each, pooled, with an interval, and two predictions against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hovernet_cyclic.core.comparison import ScoreTable, drawn_images
from hovernet_cyclic.core.metrics import EPSILON, Float64Array
from hovernet_cyclic.core.type_scores import TypedTally, TypeTally

WHOLE = ("mpq_images", "mpq_pooled", "accuracy")
OF_TYPE = ("pq", "f1")


def type_report(table: ScoreTable, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """The type scores of a table as plain values, None where not defined.

    by_type: type_id (as text) -> true_nuclei, pred_nuclei, pq, f1, pooled over images. mpq_images: mean over images of
    their mPQ; mpq_pooled: mean over types of the pooled PQ (CoNIC's mPQ+). accuracy: of the types of paired nuclei.
    low, high: 95 % interval of each of these, of a bootstrap over images. images: tile_id -> mpq, accuracy, by_type.
    """
    types, typed = sorted(table.typed_total.types), table.typed
    found = type_values(typed, types, np.ones((1, len(typed))))[0]
    low, high = _bounds(type_values(typed, types, drawn_images(len(typed), seed, resamples)), len(typed))
    report = _nested(found, types)
    for c, row in report["by_type"].items():
        total = table.typed_total.types[int(c)]
        row.update(true_nuclei=total.true_nuclei, pred_nuclei=total.pred_nuclei)
    alone = type_values(typed, types, np.eye(len(typed)))
    images = dict(zip(table.tile_ids, (_of_image(row, types) for row in alone), strict=True))
    return {**report, "low": _nested(low, types), "high": _nested(high, types), "images": images}


def type_difference(first: ScoreTable, second: ScoreTable, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """First minus second: mean, low and high of each score, as `type_report` names them; None where not defined.

    The interval is that of a bootstrap over images that draws the same images for both. Raises ValueError unless both
    score the same images in the same order.
    """
    if first.tile_ids != second.tile_ids:
        raise ValueError("type_difference needs the same images in the same order")
    types, count = sorted({*first.typed_total.types, *second.typed_total.types}), len(first.typed)

    def difference(weights: npt.NDArray[np.floating[Any]]) -> Float64Array:
        return type_values(first.typed, types, weights) - type_values(second.typed, types, weights)

    low, high = _bounds(difference(drawn_images(count, seed, resamples)), count)
    mean = difference(np.ones((1, count)))[0]
    return {name: _nested(values, types) for name, values in (("mean", mean), ("low", low), ("high", high))}


def type_values(
    typed: Sequence[TypedTally], types: Sequence[int], weights: npt.NDArray[np.floating[Any]]
) -> Float64Array:
    """float64 (R, 3 + 2 C): WHOLE, then OF_TYPE for each of the C types, nan where not defined.

    weights: floating (R, I), how often each of the I images counts. Formulas: see TypeTally and TypedTally.
    """
    empty = TypeTally()
    rows = [[dataclasses.astuple(image.types.get(c, empty)) for c in types] for image in typed]
    sums = np.array(rows, np.float64).reshape(len(typed), len(types), len(dataclasses.fields(TypeTally)))
    pooled = np.moveaxis(np.einsum("ri,icf->rcf", weights, sums), -1, 0)
    matched, matched_iou, true, pred, agree, claimed, denied, missed, spurious = pooled
    pq = _ratio(2 * matched, true + pred) * matched_iou / (matched + EPSILON)
    f1 = _ratio(2 * agree, 2 * (agree + claimed + denied) + missed + spurious)
    of_images = np.array([[np.nan if image.mpq is None else image.mpq] for image in typed]).reshape(1, -1)
    mpq_images = _mean_of_known(np.broadcast_to(of_images, weights.shape), weights)
    right, paired = (weights @ np.array([getattr(image, name) for image in typed]) for name in ("right", "paired"))
    whole = (mpq_images, _mean_of_known(pq, np.ones_like(pq)), _ratio(right, paired))
    return np.concatenate([np.stack(whole, axis=1), np.stack([pq, f1], axis=2).reshape(len(weights), -1)], axis=1)


def _ratio(above: Float64Array, below: Float64Array) -> Float64Array:
    ratio: Float64Array = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return ratio


def _mean_of_known(values: Float64Array, weights: npt.NDArray[np.floating[Any]]) -> Float64Array:
    """float64 (R,): weighted mean of each row of values (R, K), its nan left out; nan where nothing is known."""
    known = np.isfinite(values)
    return _ratio((np.where(known, values, 0.0) * weights).sum(axis=1), (known * weights).sum(axis=1))


def _bounds(drawn: Float64Array, images: int) -> Float64Array:
    """float64 (2, K): the 2.5 and 97.5 percentiles of each column of drawn (R, K); nan for fewer than two images."""
    bounds = np.full((2, drawn.shape[1]), np.nan)
    for column, values in enumerate(drawn.T):
        known = values[np.isfinite(values)]
        if images > 1 and known.size:
            bounds[:, column] = np.percentile(known, (2.5, 97.5))
    return bounds


def _nested(values: Float64Array, types: Sequence[int]) -> dict[str, Any]:
    plain = [value if value == value else None for value in values.tolist()]
    rows = (plain[len(WHOLE) + 2 * place :][:2] for place in range(len(types)))
    by_type = {str(c): dict(zip(OF_TYPE, row, strict=True)) for c, row in zip(types, rows, strict=True)}
    return {**dict(zip(WHOLE, plain, strict=False)), "by_type": by_type}


def _of_image(values: Float64Array, types: Sequence[int]) -> dict[str, Any]:
    """One image's numbers; its types are those that it or its prediction has."""
    nested = _nested(values, types)
    present = {c: row for c, row in nested["by_type"].items() if row["pq"] is not None}
    return {"mpq": nested["mpq_pooled"], "accuracy": nested["accuracy"], "by_type": present}
