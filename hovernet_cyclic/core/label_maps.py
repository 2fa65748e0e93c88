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

from hovernet_cyclic.core.types import Box, Float32Array, Int32Array, Int64Array, Nucleus

LabelArray = npt.NDArray[np.integer[Any]]

# Up to this many entries a table indexed by inst_id is cheaper than sorting the pixels.
_LOOKUP_LIMIT = 1 << 22
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def instance_areas(inst_map: LabelArray) -> tuple[Int64Array, Int64Array]:
    """Ids of the instances, ascending, and their areas in px: two int64 (N,). Background is left out.

    inst_map: integer (H, W). Raises ValueError for negative ids.
    """
    if inst_map.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if int(inst_map.min()) < 0:
        raise ValueError("inst_map holds negative ids; 0 is background and ids are positive")
    if int(inst_map.max()) < _LOOKUP_LIMIT:
        counts = np.bincount(inst_map.ravel().astype(np.int64))
        ids = np.flatnonzero(counts)
        areas = counts[ids]
    else:
        ids, areas = np.unique(inst_map, return_counts=True)
    keep = ids != 0
    return ids[keep].astype(np.int64), areas[keep].astype(np.int64)


def instance_indices(inst_map: LabelArray, inst_ids: Int64Array) -> Int32Array:
    """int32 (H, W): 0 where inst_map is none of inst_ids, else 1 + the position of its id in inst_ids (ascending)."""
    if inst_ids.size == 0:
        return np.zeros(inst_map.shape, np.int32)
    largest = int(inst_map.max()) if inst_map.size else 0
    if largest < _LOOKUP_LIMIT:
        table = np.zeros(max(largest, int(inst_ids[-1])) + 1, np.int32)
        table[inst_ids] = np.arange(1, inst_ids.size + 1)
        return table[inst_map]
    position = np.searchsorted(inst_ids, inst_map).clip(max=inst_ids.size - 1)
    return np.where(inst_ids[position] == inst_map, position + 1, 0).astype(np.int32)


def relabel(inst_map: LabelArray) -> Int32Array:
    """int32 (H, W): the instances numbered 1..N without gaps, in the order of their old ids."""
    return instance_indices(inst_map, instance_areas(inst_map)[0])


def remove_small(inst_map: LabelArray, min_area: int) -> Int32Array:
    """int32 (H, W): instances of fewer than min_area px become background; the others keep their ids (below 2**31)."""
    ids, areas = instance_areas(inst_map)
    kept = ids[areas >= min_area]
    values = np.concatenate([np.zeros(1, np.int32), kept.astype(np.int32)])
    return values[instance_indices(inst_map, kept)]


def boxes(inst_map: LabelArray) -> dict[int, Box]:
    """inst_id -> the smallest half-open box round it, px, ascending ids. inst_map: integer (H, W)."""
    ids, _ = instance_areas(inst_map)
    if ids.size == 0:
        return {}
    slices = ndimage.find_objects(instance_indices(inst_map, ids))
    return {
        int(inst_id): Box(rows.start, columns.start, rows.stop, columns.stop)
        for inst_id, (rows, columns) in zip(ids, slices, strict=True)
    }


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
    """(inst_id, box, centroid (x, y) of its pixels) of each instance, ascending ids; in one go over the pixels."""
    ids, areas = instance_areas(inst_map)
    if ids.size == 0:
        return []
    inside = np.flatnonzero(inst_map)
    index = _positions(inst_map.ravel()[inside], ids)
    rows, columns = np.divmod(inside.astype(np.int32), np.int32(inst_map.shape[1]))
    top, left, bottom, right = np.zeros((4, ids.size), np.int32)
    top[index[::-1]], bottom[index] = rows[::-1], rows + 1  # in reading order: the first and the last row
    left[:] = inst_map.shape[1]
    np.minimum.at(left, index, columns)
    np.maximum.at(right, index, columns + 1)
    # Sums from each box's corner are small whole numbers, so that the means are exact to the last bit.
    x = np.bincount(index, weights=columns - left[index], minlength=ids.size) / areas + left
    y = np.bincount(index, weights=rows - top[index], minlength=ids.size) / areas + top
    corners = zip(top.tolist(), left.tolist(), bottom.tolist(), right.tolist(), strict=True)
    centroids = zip(x.tolist(), y.tolist(), strict=True)
    return [
        (inst_id, Box(*box), centroid) for inst_id, box, centroid in zip(ids.tolist(), corners, centroids, strict=True)
    ]


def _positions(values: LabelArray, ids: Int64Array) -> Int64Array:
    """Where each value, one of ids (ascending), stands in ids."""
    if int(ids[-1]) < _LOOKUP_LIMIT:
        table = np.zeros(int(ids[-1]) + 1, np.int64)
        table[ids] = np.arange(ids.size)
        return table[values]
    return np.searchsorted(ids, values).astype(np.int64)


def _first_contour(mask: npt.NDArray[np.uint8], box: Box) -> Int32Array:
    """int32 (K, 2), x then y, tile px; mask: uint8, not empty, of the box."""
    contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE, offset=(box.left, box.top))
    return np.asarray(contours[0], dtype=np.int32).reshape(-1, 2)
