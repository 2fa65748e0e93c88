"""Textures of the drawn tissue: smooth noise, wavy fibres, polar shapes."""

from __future__ import annotations

import cv2
import numpy as np

from hovernet_cyclic.core.types import Float32Array

Shape = tuple[int, int]


def pixel_grid(shape: Shape) -> tuple[Float32Array, Float32Array]:
    """Row and column of each pixel: two float32 (H, W)."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return rows, columns


def smooth_noise(shape: Shape, scale: float, rng: np.random.Generator) -> Float32Array:
    """Noise of about zero mean and unit deviation whose grain is `scale` px: float32 (H, W)."""
    if scale <= 1:
        return rng.standard_normal(shape, dtype=np.float32)
    coarse = rng.standard_normal((int(shape[0] / scale) + 4, int(shape[1] / scale) + 4), dtype=np.float32)
    rows, columns = pixel_grid(shape)
    offset = 1 + rng.random(2, dtype=np.float32)
    sampled = cv2.remap(coarse, columns / scale + offset[1], rows / scale + offset[0], cv2.INTER_CUBIC)
    return np.asarray(sampled * 1.35, np.float32)  # interpolation has taken away about a quarter of the deviation


def fractal_noise(shape: Shape, scale: float, rng: np.random.Generator) -> Float32Array:
    """Three octaves of `smooth_noise`, the coarsest of `scale` px, about unit deviation: float32 (H, W)."""
    octaves = [smooth_noise(shape, scale / 2**k, rng) * 0.6**k for k in range(3)]
    return np.asarray(sum(octaves) / 1.22, np.float32)


def fibre_noise(shape: Shape, angle: float, rng: np.random.Generator) -> Float32Array:
    """Noise drawn out along `angle` (radians from the x axis) and bent into waves, about unit deviation: float32 (H, W)."""
    rows, columns = pixel_grid(shape)
    bend = 16 * smooth_noise(shape, 70, rng) + 4 * smooth_noise(shape, 24, rng)
    along = columns * np.float32(np.cos(angle)) + rows * np.float32(np.sin(angle))
    across = rows * np.float32(np.cos(angle)) - columns * np.float32(np.sin(angle)) + bend
    grain = rng.standard_normal((256, 256), dtype=np.float32)
    strands = _sample(grain, along / 45, across / 6) + 0.8 * _sample(grain.T.copy(), along / 22, across / 2.4)
    return np.asarray(strands * 1.1, np.float32)


def polar_radius(shape: Shape, centre: tuple[float, float], axes: tuple[float, float], angle: float) -> Float32Array:
    """Distance from `centre` (row, column) in units of an ellipse: 1 on its edge. float32 (H, W).

    axes: semi-axes in px, along `angle` (radians from the x axis) and across it.
    """
    rows, columns = pixel_grid(shape)
    dy, dx = rows - np.float32(centre[0]), columns - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = (dx * cos + dy * sin) / axes[0], (dy * cos - dx * sin) / axes[1]
    return np.asarray(np.sqrt(along * along + across * across), np.float32)


def soft_step(values: Float32Array, edge: float, width: float) -> Float32Array:
    """0 below `edge`, 1 above it, a ramp of `width` between: float32, shape of `values`."""
    return np.asarray(np.clip((values - edge) / width + 0.5, 0, 1), np.float32)


def _sample(grain: Float32Array, x: Float32Array, y: Float32Array) -> Float32Array:
    # remap cannot interpolate across a wrapped border, so the grain is periodic by taking the remainder well inside.
    side = grain.shape[0]
    sampled = cv2.remap(np.pad(grain, 2, mode="wrap"), x % side + 2, y % side + 2, cv2.INTER_LINEAR)
    return np.asarray(sampled, np.float32)
