"""Pixels of one scale from those of another, on a grid that belongs to the slide.

Every output pixel is a weighted mean of source pixels whose indices and weights follow from its own index alone, so it
is the same whatever box it is asked for in. Shrinking takes the mean over the area that the pixel covers; enlarging
interpolates linearly between pixel centres. Rows first, then columns, in float32, rounded once at the end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from hovernet_cyclic.core.types import Float32Array, Int64Array, UInt8Array


class AxisTaps(NamedTuple):
    """Along one axis, for n output pixels and k source pixels of each: indices int64 (n, k), weights float32 (n, k)."""

    indices: Int64Array
    weights: Float32Array


def axis_taps(begin: int, end: int, factor: float, source_length: int) -> AxisTaps:
    """Taps of output pixels begin..end-1. factor: source px per output px. Indices are clipped to the source."""
    if factor >= 1:
        return _area_taps(np.arange(begin, end), factor, source_length)
    centres = (np.arange(begin, end) + 0.5) * factor - 0.5
    first = np.floor(centres).astype(np.int64)
    fraction = (centres - first).astype(np.float32)
    indices = np.stack([first, first + 1], axis=1).clip(0, source_length - 1)
    return AxisTaps(indices, np.stack([1 - fraction, fraction], axis=1))


def _area_taps(outputs: Int64Array, factor: float, source_length: int) -> AxisTaps:
    low = np.minimum(outputs * factor, source_length - 1.0)
    high = np.minimum((outputs + 1) * factor, float(source_length))
    count = math.ceil(factor) + 1
    indices = np.floor(low).astype(np.int64)[:, None] + np.arange(count)
    covered = np.minimum(high[:, None], indices + 1) - np.maximum(low[:, None], indices)
    covered = np.maximum(covered, 0.0)
    weights = (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)
    return AxisTaps(indices.clip(0, source_length - 1), weights)


def resample(source: UInt8Array, corner: tuple[int, int], rows: AxisTaps, columns: AxisTaps) -> UInt8Array:
    """uint8 (n, m, 3) for n row taps and m column taps.

    source: uint8 (h, w, 3), the part of the slide whose top left pixel is `corner` (row, column); it holds all taps.
    """
    across = _weighted(source.astype(np.float32), rows, corner[0])
    mixed = _weighted(np.ascontiguousarray(across.swapaxes(0, 1)), columns, corner[1])
    return np.ascontiguousarray(np.clip(mixed + np.float32(0.5), 0, 255).astype(np.uint8).swapaxes(0, 1))


def _weighted(values: Float32Array, taps: AxisTaps, offset: int) -> Float32Array:
    """Weighted sums of rows, tap by tap: each output adds in the same order, wherever the box begins."""
    total = np.zeros((len(taps.indices), *values.shape[1:]), np.float32)
    for tap in range(taps.indices.shape[1]):
        total += values[taps.indices[:, tap] - offset] * taps.weights[:, tap, None, None]
    return total
