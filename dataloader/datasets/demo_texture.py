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
    # Enlarged and cropped at random: remap would round positions to 1/32 of a grain and leave stairs in slow slopes.
    fine = cv2.resize(coarse, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    top, left = (int(scale * (1 + shift)) for shift in rng.random(2))
    return np.asarray(fine[top : top + shape[0], left : left + shape[1]] * 1.35, np.float32)  # cubic loses a quarter


def fractal_noise(shape: Shape, scale: float, rng: np.random.Generator) -> Float32Array:
    """Three octaves of `smooth_noise`, the coarsest of `scale` px, about unit deviation: float32 (H, W)."""
    octaves = [smooth_noise(shape, scale / 2**k, rng) * 0.6**k for k in range(3)]
    return np.asarray(sum(octaves) / 1.22, np.float32)


def fibre_noise(shape: Shape, angle: float, rng: np.random.Generator) -> Float32Array:
    """Noise drawn out along `angle` (radians) and bent into waves, about unit deviation: float32 (H, W)."""
    rows, columns = pixel_grid(shape)
    bend = 11 * smooth_noise(shape, 95, rng) + 2.5 * smooth_noise(shape, 30, rng)
    along = np.asarray(columns * np.cos(angle) + rows * np.sin(angle), np.float32)
    across = np.asarray(rows * np.cos(angle) - columns * np.sin(angle) + bend, np.float32)
    grain = rng.standard_normal((256, 256), dtype=np.float32)
    strands = _sample(grain, along, across, (45, 6)) + 0.8 * _sample(grain.T.copy(), along, across, (22, 2.4))
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


def _sample(grain: Float32Array, x: Float32Array, y: Float32Array, scale: tuple[float, float]) -> Float32Array:
    """Grain stretched by `scale` (x, y) and read at x, y px: float32 (H, W)."""
    # remap cannot interpolate across a wrapped border, so the grain is periodic by taking the remainder well inside.
    side = grain.shape[0]
    x, y = x / scale[0] % side + 2, y / scale[1] % side + 2
    sampled = cv2.remap(np.pad(grain, 2, mode="wrap"), x, y, cv2.INTER_LINEAR)
    return np.asarray(sampled, np.float32)
