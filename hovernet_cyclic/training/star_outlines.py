"""Closed outlines round seeds, each where a map falls most steeply outwards: what no threshold can cut out.

A vesicular nucleus is dark at its rim alone, and nuclei that touch are one region at every level. But from the inside
of a nucleus outwards the map falls all round, at a distance that changes little from one direction to the next. The
outline is the best closed path through a grid of directions and distances, by dynamic programming (Bamford & Lovell,
Unsupervised cell nucleus segmentation with active contours, Signal Processing 71, 1998). Seeds are blobs of several
sizes (Lindeberg, Feature detection with automatic scale selection, IJCV 30, 1998), which filled and hollow nuclei both
are once they are blurred.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from hovernet_cyclic.core.types import Float32Array, Int32Array

# Chosen on the validation images of the benchmark by how many of the best candidates match a drawn nucleus.
RAYS = 32  # directions, evenly round
NEAREST, FARTHEST = 1.0, 6.25  # um from a seed
STEP = 0.25  # um, from one distance to the next
BEND = 4  # steps by which the distance may change from one direction to the next
SURROUND = 1.6  # of a seed's blur: the wider one that it is compared with
APART = 0.8  # of a seed's blur: nearer than that lies no better one of its size
LEAST_BLOB = 0.02  # by how much a seed is higher than its surroundings, over the standard deviation of the map
ROUNDING = 1e-6  # of the map's largest value: differences below say nothing
AT_A_TIME = 1000  # seeds, so that memory stays small; times RAYS below 2^15, which is as high as OpenCV samples
SMALLEST_SIDE = 3  # px of the window in which a seed is the highest


class Star(NamedTuple):
    """An outline. corners: int32 (RAYS, 2) x, y in px of the map. fall: mean slope outwards there, map units a px."""

    corners: Int32Array
    fall: float


def star_outlines(
    score: Float32Array, slopes: tuple[Float32Array, Float32Array], mpp: float, radii_um: tuple[float, ...]
) -> list[Star]:
    """The best outline round each seed, those that reach over the border left out; many of them overlap.

    score: float32 (H, W), higher where a nucleus is likelier. slopes: its slopes along x and along y, float32 (H, W).
    radii_um: of the blobs that are taken as seeds.
    """
    seeds = find_seeds(score, mpp, radii_um)
    found: list[Star] = []
    for begin in range(0, len(seeds), AT_A_TIME):
        found += _stars(seeds[begin : begin + AT_A_TIME], slopes, mpp)
    return found


def find_seeds(score: Float32Array, mpp: float, radii_um: tuple[float, ...]) -> Float32Array:
    """Centres of blobs of these radii, float32 (N, 2) x, y: where less and more blurred maps differ most."""
    found: list[Float32Array] = [np.zeros((0, 2), np.float32)]
    least = max(LEAST_BLOB * float(score.std()), ROUNDING * float(np.abs(score).max(initial=0)))
    for radius in radii_um:
        blur = radius / mpp / np.sqrt(2)
        blob = np.subtract(
            *(cv2.GaussianBlur(score, (0, 0), scale) for scale in (blur, SURROUND * blur)), dtype=np.float32
        )
        side = max(SMALLEST_SIDE, 2 * round(APART * blur) + 1)
        highest = cv2.dilate(blob, np.ones((side, side), np.uint8))
        rows, columns = np.nonzero((blob == highest) & (blob > least))
        found.append(np.stack([columns, rows], axis=1).astype(np.float32))
    return np.concatenate(found)


def _stars(seeds: Float32Array, slopes: tuple[Float32Array, Float32Array], mpp: float) -> list[Star]:
    angles = np.linspace(0, 2 * np.pi, RAYS, endpoint=False, dtype=np.float32)
    along: Float32Array = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = (np.arange(NEAREST, FARTHEST + STEP / 2, STEP) / mpp).astype(np.float32)
    places: Float32Array = seeds[:, None, None] + along[:, None] * distances[:, None]  # (N, RAYS, D, 2)
    across, down = (_sampled(slope, places) for slope in slopes)
    fall = -(across * along[:, None, 0] + down * along[:, None, 1])
    path = best_closed_paths(fall, BEND)
    on_path = np.take_along_axis(fall, path[..., None], axis=2)[..., 0]
    corners = np.rint(seeds[:, None] + along * distances[path][..., None]).astype(np.int32)
    height, width = slopes[0].shape
    inside = (corners >= 0).all((1, 2)) & (corners < (width, height)).all((1, 2))
    return [Star(corners[i], float(on_path[i].mean())) for i in np.flatnonzero(inside)]


def _sampled(values: Float32Array, places: Float32Array) -> Float32Array:
    """float32 (H, W) at places (N, RAYS, D, 2) x, y, between pixels too; beyond the border its nearest pixel counts."""
    x, y = (np.ascontiguousarray(places[..., axis].reshape(-1, places.shape[2])) for axis in (0, 1))
    found = cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32).reshape(places.shape[:-1])


def best_closed_paths(gain: Float32Array, bend: int) -> Int32Array:
    """int32 (N, A): for each direction the distance, such that the sum of gains is highest, neighbours within `bend`.

    gain: float32 (N, A, D), of A directions and D distances; the last direction lies beside the first. The best open
    path twice round is taken, and the middle half of it: it is closed where that has forgotten how it began, which is
    nearly always.
    """
    count, directions, distances = gain.shape
    window = np.ones((1, 2 * bend + 1), np.uint8)
    best = np.empty((2 * directions, count, distances), np.float32)
    best[0] = gain[:, 0]
    for step in range(1, 2 * directions):
        np.add(cv2.dilate(best[step - 1], window), gain[:, step % directions], out=best[step])
    path = np.empty((count, 2 * directions), np.int32)
    path[:, -1] = best[-1].argmax(axis=1)
    near, rows = np.arange(-bend, bend + 1), np.arange(count)[:, None]
    for step in range(2 * directions - 1, 0, -1):
        allowed = np.clip(path[:, step, None] + near, 0, distances - 1)
        chosen = best[step - 1][rows, allowed].argmax(axis=1)
        path[:, step - 1] = allowed[rows[:, 0], chosen]
    half = directions // 2
    return np.concatenate([path[:, directions : directions + half], path[:, half:directions]], axis=1)
