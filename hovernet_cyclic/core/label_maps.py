"""Instance maps: renumber, clean, find boxes, describe nuclei.

An `inst_map` is an integer array (H, W), 0 background, any other positive number an instance. Work on one nucleus stays
inside its own box, so the cost grows with the nuclei, not with nuclei times tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hovernet_cyclic.core import runs
from hovernet_cyclic.core.runs import LabelArray
from hovernet_cyclic.core.types import Box, Float32Array, Int32Array, Int64Array, Nucleus

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def instance_areas(inst_map: LabelArray) -> tuple[Int64Array, Int64Array]:
    """Ids of the instances, ascending, and their areas in px: two int64 (N,). Background is left out.

    inst_map: integer (H, W). Raises ValueError for negative ids.
    """
    ids, of_ids, index = _instances(inst_map)
    return ids, runs.areas(of_ids, index, ids.size)


def _instances(inst_map: LabelArray) -> tuple[Int64Array, runs.Runs, Int64Array]:
    """Ids as in `instance_areas`, the runs that hold one, and int64 (R,), where in the ids that of each run stands."""
    found = runs.runs_of(inst_map)
    if found.values.min(initial=0) < 0:
        raise ValueError("inst_map holds negative ids; 0 is background and ids are positive")
    found = found.of(found.values > 0)
    ids = np.unique(found.values)
    return ids.astype(np.int64), found, np.searchsorted(ids, found.values)


def instance_indices(inst_map: LabelArray, inst_ids: Int64Array) -> Int32Array:
    """int32, in the shape of inst_map: 0 where it is none of inst_ids, else 1 + where its id stands in them.

    inst_map: integer (..., W). inst_ids: ascending.
    """
    return _repainted(inst_map, inst_ids, np.arange(1, inst_ids.size + 1, dtype=np.int32))


def _repainted(inst_map: LabelArray, inst_ids: Int64Array, values: Int32Array) -> Int32Array:
    """int32, in the shape of inst_map: for each of inst_ids (ascending) its value, int32 (N,), and 0 elsewhere."""
    if inst_ids.size == 0:
        return np.zeros(inst_map.shape, np.int32)
    starts = runs.run_starts(inst_map)
    held = inst_map.ravel()[starts]
    position = np.searchsorted(inst_ids, held).clip(max=inst_ids.size - 1)
    of_runs = np.where(inst_ids[position] == held, values[position], np.int32(0))
    return np.repeat(of_runs, np.diff(starts, append=inst_map.size)).reshape(inst_map.shape)


def relabel(inst_map: LabelArray) -> Int32Array:
    """int32 (H, W): the instances numbered 1..N without gaps, in the order of their old ids."""
    return instance_indices(inst_map, instance_areas(inst_map)[0])


def remove_small(inst_map: LabelArray, min_area: int) -> Int32Array:
    """int32 (H, W): instances of fewer than min_area px become background; the others keep their ids (below 2**31)."""
    ids, areas = instance_areas(inst_map)
    kept = ids[areas >= min_area]
    return _repainted(inst_map, kept, kept.astype(np.int32))


def boxes(inst_map: LabelArray) -> dict[int, Box]:
    """inst_id -> the smallest half-open box round it, px, ascending ids. inst_map: integer (H, W)."""
    ids, of_ids, index = _instances(inst_map)
    corners = runs.boxes(of_ids, index, ids.size).tolist()
    return {inst_id: Box(*box) for inst_id, box in zip(ids.tolist(), corners, strict=True)}


def split_disconnected(inst_map: LabelArray) -> Int32Array:
    """int32 (H, W): every instance is one 8-connected piece.

    The largest piece of an instance keeps its id (of equals, the first in reading order); each further one gets a new
    id above all others.
    """
    result = inst_map.astype(np.int32)
    next_id = int(result.max(initial=0)) + 1
    for inst_id, box in boxes(inst_map).items():
        crop = result[box.top : box.bottom, box.left : box.right]
        pieces, count = ndimage.label(crop == inst_id, structure=_EIGHT_NEIGHBOURS)
        if count < 2:
            continue
        largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
        for piece in range(1, count + 1):
            if piece != largest:
                crop[pieces == piece] = next_id
                next_id += 1
    return result


def majority_types(inst_map: LabelArray, type_map: LabelArray) -> dict[int, tuple[int, float]]:
    """inst_id -> (type_id, type_prob), ascending ids.

    inst_map, type_map: integer (H, W), types >= 0. type_id is the commonest type of the nucleus' pixels (of equals, the
    smallest); where that is background (0) and any other type is present, the commonest other. type_prob is
    count / (area + 1e-6), hover_net's arithmetic (models/hovernet/post_proc.py).
    """
    ids, areas = instance_areas(inst_map)
    if ids.size == 0:
        return {}
    inside = np.flatnonzero(inst_map)
    index = instance_indices(inst_map.ravel()[inside], ids).astype(np.int64) - 1
    types = type_map.ravel()[inside].astype(np.int64)
    nr_types = int(types.max()) + 1
    counts = np.bincount(index * nr_types + types, minlength=ids.size * nr_types).reshape(ids.size, nr_types)
    best = counts.argmax(axis=1)
    if nr_types > 1:
        other = 1 + counts[:, 1:].argmax(axis=1)
        best = np.where((best == 0) & (counts[:, 1:].sum(axis=1) > 0), other, best)
    probabilities = counts[np.arange(ids.size), best] / (areas + 1.0e-6)
    return {
        int(inst_id): (int(type_id), float(probability))
        for inst_id, type_id, probability in zip(ids, best, probabilities, strict=True)
    }


def mean_type_probs(inst_map: LabelArray, type_probs: npt.NDArray[np.floating[Any]]) -> dict[int, Float32Array]:
    """inst_id -> float32 (T,), ascending ids: the mean over the nucleus' pixels of the probability of each type.

    inst_map: integer (H, W). type_probs: floating (H, W, T). The most probable type need not be that of
    `majority_types`, which counts each pixel for its most probable type alone.
    """
    ids, areas = instance_areas(inst_map)
    inside = np.flatnonzero(inst_map)
    index = instance_indices(inst_map.ravel()[inside], ids) - 1
    of_pixels = type_probs.reshape(-1, type_probs.shape[-1])[inside]
    sums = [np.bincount(index, weights=column, minlength=ids.size) for column in of_pixels.T]
    means = (np.stack(sums, axis=1) / areas[:, None]).astype(np.float32)
    return dict(zip(ids.tolist(), means, strict=True))


def extract_nuclei(
    inst_map: LabelArray,
    type_map: LabelArray | None = None,
    type_probs: npt.NDArray[np.floating[Any]] | None = None,
) -> dict[int, Nucleus]:
    """inst_id -> Nucleus, ascending ids, as hover_net describes nuclei (models/hovernet/post_proc.py).

    inst_map: integer (H, W); type_map: integer (H, W) or None; type_probs: floating (H, W, T) or None. Coordinates are
    tile px. The contour is OpenCV's first one of the instance (RETR_TREE, CHAIN_APPROX_SIMPLE); an instance whose
    contour has fewer than 3 points is left out. The centroid is that of its pixels. For types see `majority_types` and
    `mean_type_probs`. Raises ValueError for unequal shapes.
    """
    for name, of_types in (("type_map", type_map), ("type_probs", type_probs)):
        if of_types is not None and of_types.shape[:2] != inst_map.shape:
            raise ValueError(f"{name} {of_types.shape} and inst_map {inst_map.shape} differ in shape")
    types: Mapping[int, tuple[int, float]] = {} if type_map is None else majority_types(inst_map, type_map)
    probs = {} if type_probs is None else mean_type_probs(inst_map, type_probs)
    nuclei = {}
    for inst_id, box, centroid in _places(inst_map):
        mask = inst_map[box.top : box.bottom, box.left : box.right] == inst_id
        contour = _first_contour(mask.view(np.uint8), box)
        if len(contour) < 3:
            continue
        type_id, type_prob = types.get(inst_id, (None, None))
        nuclei[inst_id] = Nucleus(
            bbox=box,
            centroid=centroid,
            contour=contour,
            type_id=type_id,
            type_prob=type_prob,
            type_probs=probs.get(inst_id),
        )
    return nuclei


def _places(inst_map: LabelArray) -> list[tuple[int, Box, tuple[float, float]]]:
    """(inst_id, box, centroid (x, y) of its pixels) of each instance, ascending ids."""
    ids, of_ids, index = _instances(inst_map)
    areas = runs.areas(of_ids, index, ids.size)
    corners = runs.boxes(of_ids, index, ids.size)
    top, left, _, _ = corners.T
    # Sums from each box's corner are whole numbers, small enough for the means to be exact to the last bit.
    lengths = of_ids.lengths
    right_of_left = (of_ids.columns - left[index]) * lengths + lengths * (lengths - 1) // 2
    x = np.bincount(index, weights=right_of_left, minlength=ids.size) / areas + left
    y = np.bincount(index, weights=(of_ids.rows - top[index]) * lengths, minlength=ids.size) / areas + top
    centroids = zip(x.tolist(), y.tolist(), strict=True)
    return [
        (inst_id, Box(*box), centroid)
        for inst_id, box, centroid in zip(ids.tolist(), corners.tolist(), centroids, strict=True)
    ]


def _first_contour(mask: npt.NDArray[np.uint8], box: Box) -> Int32Array:
    """int32 (K, 2), x then y, tile px; mask: uint8, not empty, of the box."""
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE, offset=(box.left, box.top))
    return np.asarray(contours[0], dtype=np.int32).reshape(-1, 2)
