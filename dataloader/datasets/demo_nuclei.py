"""Drawn nuclei: lymphocytes, vesicular epithelium, spindles and pleomorphic giants, each inside its own box."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from dataloader.datasets.demo_texture import Shape, pixel_grid, smooth_noise, soft_step
from dataloader.datasets.demo_tissue import Gland, Tissue
from hovernet_cyclic.core.types import BoolArray, Float32Array

SMALLEST_NUCLEUS = 30  # px of a nucleus that the edge of the field cuts; less is not drawn
_LARGEST_SHARED = 0.18  # share of a nucleus that a neighbour may already hold


class NucleusKind(NamedTuple):
    """Ranges to draw from. major: semi-axis px; aspect: minor / major; body, rim: haematoxylin in OD.

    wobble: deviation of the outline, clumps: of the chromatin, both as shares; nucleoli: at most so many.
    """

    major: tuple[float, float]
    aspect: tuple[float, float]
    body: tuple[float, float]
    rim: tuple[float, float]
    wobble: float
    clumps: float
    nucleoli: int


LYMPHOCYTE = NucleusKind((8, 10.5), (0.82, 1.0), (0.72, 1.0), (0.05, 0.15), 0.03, 0.16, 0)
EPITHELIAL = NucleusKind((11, 16), (0.62, 0.85), (0.28, 0.60), (0.16, 0.38), 0.035, 0.24, 2)
PALE = NucleusKind((12, 17), (0.65, 0.9), (0.17, 0.30), (0.18, 0.34), 0.035, 0.32, 2)
SPINDLE = NucleusKind((15, 22), (0.22, 0.34), (0.50, 0.85), (0.05, 0.20), 0.06, 0.12, 0)
PLEOMORPHIC = NucleusKind((14, 19), (0.65, 0.95), (0.40, 0.80), (0.10, 0.35), 0.10, 0.28, 3)


class Place(NamedTuple):
    """Where a nucleus is to lie: centre in px, and the angle of its long axis in radians from the x axis."""

    kind: NucleusKind
    row: float
    column: float
    angle: float


class NucleiPlan(NamedTuple):
    """Which nuclei a field gets. spacing: px between cells of a sheet; spindles, lymphocytes: per 512 x 512 px.

    clusters: knots of lymphocytes, per 512 x 512 px.
    """

    sheet_kinds: tuple[NucleusKind, ...]
    spacing: float
    spindles: int
    lymphocytes: int
    clusters: int


def add_nuclei(tissue: Tissue, plan: NucleiPlan, rng: np.random.Generator) -> None:
    """Draws the planned nuclei into `tissue`: dye, and ids 1..N in its inst_map."""
    for gland in tissue.glands:
        kind = plan.sheet_kinds[0]
        for place in _ring_places(gland, kind, rng):
            _draw(tissue, place, rng, in_gland=True)
    for place in _free_places(tissue, plan, rng):
        _draw(tissue, place, rng)


def _ring_places(gland: Gland, kind: NucleusKind, rng: np.random.Generator) -> Iterator[Place]:
    """Nuclei along the base of a gland, upright on its outline; the second row is sparser."""
    girth = np.pi * sum(gland.axes)
    cos, sin = float(np.cos(gland.angle)), float(np.sin(gland.angle))
    for depth, keep in ((0.85, 0.95), (0.66, 0.4)):
        count = max(1, int(girth * depth / (1.9 * np.mean(kind.major) * np.mean(kind.aspect))))
        for turn in 2 * np.pi * (np.arange(count) + rng.uniform(-0.2, 0.2, count)) / count:
            out = depth + rng.normal(0, 0.025)
            along, across = gland.axes[0] * out * np.cos(turn), gland.axes[1] * out * np.sin(turn)
            down, right = along * sin + across * cos, along * cos - across * sin
            if rng.random() < keep:
                upright = np.arctan2(down, right) + rng.normal(0, 0.2)
                yield Place(kind, float(gland.centre[0] + down), float(gland.centre[1] + right), float(upright))


def _free_places(tissue: Tissue, plan: NucleiPlan, rng: np.random.Generator) -> Iterator[Place]:
    height, width = tissue.shape
    area = height * width / 512**2
    yield from _sheet_places(tissue, plan, rng)
    for _ in range(round(plan.clusters * area)):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        for _ in range(int(rng.integers(8, 30))):
            yield Place(LYMPHOCYTE, row + rng.normal(0, 22), column + rng.normal(0, 22), rng.uniform(0, np.pi))
    for _ in range(round(plan.spindles * area)):
        angle = tissue.fibre_angle + rng.normal(0, 0.3)
        yield Place(SPINDLE, rng.uniform(0, height), rng.uniform(0, width), angle)
    for _ in range(round(plan.lymphocytes * area)):
        yield Place(LYMPHOCYTE, rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0, np.pi))


def _sheet_places(tissue: Tissue, plan: NucleiPlan, rng: np.random.Generator) -> Iterator[Place]:
    """A jittered hexagonal lattice over the sheet; neighbours share a direction, as cells of one tissue do."""
    height, width = tissue.shape
    direction = smooth_noise(tissue.shape, 90, rng)
    for i, row in enumerate(np.arange(0, height, plan.spacing * 0.87)):
        for column in np.arange((i % 2) * plan.spacing / 2, width, plan.spacing):
            y, x = (float(centre + rng.normal(0, 0.2) * plan.spacing) for centre in (row, column))
            if not (0 <= y < height and 0 <= x < width) or not tissue.sheet[int(y), int(x)] or rng.random() < 0.12:
                continue
            kind = plan.sheet_kinds[int(rng.integers(len(plan.sheet_kinds)))]
            yield Place(kind, y, x, float(direction[int(y), int(x)]) * 0.8 + rng.normal(0, 0.35))


def _draw(tissue: Tissue, place: Place, rng: np.random.Generator, in_gland: bool = False) -> None:
    """One nucleus, unless it would lie in the clear, on another, or nearly outside."""
    size = rng.uniform(*place.kind.major)
    reach = int(size * 1.5) + 3
    top, left = int(place.row) - reach, int(place.column) - reach
    inside = _clip(tissue.shape, top, left, 2 * reach + 1)
    if inside is None:
        return
    box, part = inside
    here = place._replace(row=place.row - top, column=place.column - left)
    depth = _depth((2 * reach + 1, 2 * reach + 1), here, size, rng)
    whole = depth > 0
    free = (tissue.inst_map[box] == 0) & ~tissue.empty[box]
    if not in_gland:
        free &= ~tissue.ring[box]
    shown = whole[part] & free
    if shown.sum() < max(SMALLEST_NUCLEUS, (1 - _LARGEST_SHARED) * whole[part].sum()) or _pieces(shown) != 1:
        return
    _stain((tissue.haematoxylin[box], tissue.eosin[box]), depth[part], free, place.kind, rng)
    tissue.inst_map[box][shown] = tissue.inst_map.max() + 1


def _clip(shape: Shape, top: int, left: int, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """The part of a box inside the field: its slices in the field and in the box; None where nothing is inside."""
    spans = []
    for start, length in zip((top, left), shape, strict=True):
        low, high = max(0, start), min(length, start + side)
        if low >= high:
            return None
        spans.append((slice(low, high), slice(low - start, high - start)))
    return (spans[0][0], spans[1][0]), (spans[0][1], spans[1][1])


def _depth(shape: Shape, place: Place, size: float, rng: np.random.Generator) -> Float32Array:
    """About the distance in px to a wavy ellipse, positive inside: float32 (h, w). `place` is in px of this box."""
    rows, columns = pixel_grid(shape)
    dy, dx = rows - np.float32(place.row), columns - np.float32(place.column)
    cos, sin = np.cos(place.angle), np.sin(place.angle)
    along = np.asarray((dx * cos + dy * sin) / size, np.float32)
    minor = size * rng.uniform(*place.kind.aspect)
    bend = rng.normal(0, 0.12) * size  # spindles and lobes are bent, not straight
    across = np.asarray((dy * cos - dx * sin - bend * (along**2 - 0.4)) / minor, np.float32)
    turn = np.arctan2(across, along)
    waves = sum(rng.normal(0, 2 * place.kind.wobble / k) * np.cos(k * turn + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    radius = np.hypot(along, across) / (1 + waves)
    return np.asarray((1 - radius) * minor, np.float32)


def _pieces(mask: BoolArray) -> int:
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1


def _stain(
    dyes: tuple[Float32Array, Float32Array],
    depth: Float32Array,
    free: BoolArray,
    kind: NucleusKind,
    rng: np.random.Generator,
) -> None:
    """Dye of one nucleus where it is `free`, into views of haematoxylin and eosin (h, w); a clear halo around some."""
    haematoxylin, eosin = dyes
    chromatin = _chromatin(depth, kind, rng)
    cover = soft_step(depth, 0.2, 1.4) * free
    if rng.random() < 0.35:
        halo = np.exp(-(((depth + 2.5) / 2.0) ** 2)) * rng.uniform(0.2, 0.7) * free
        eosin *= np.asarray(1 - halo, np.float32)
    haematoxylin += cover * (chromatin - haematoxylin)
    eosin *= 1 - np.float32(rng.uniform(0.05, 0.4)) * cover


def _chromatin(depth: Float32Array, kind: NucleusKind, rng: np.random.Generator) -> Float32Array:
    """Haematoxylin of a nucleus, OD >= 0.05: clumps, a darker rim, nucleoli. float32 (h, w)."""
    shape = (depth.shape[0], depth.shape[1])
    clumps = smooth_noise(shape, 3.2, rng) + 0.5 * smooth_noise(shape, 1.7, rng)
    amount = rng.uniform(*kind.body) * (1 + kind.clumps * clumps)
    amount = amount + rng.uniform(*kind.rim) * np.exp(-(((depth - 1.2) / 1.3) ** 2))
    for _ in range(int(rng.integers(0, kind.nucleoli + 1))):
        amount = amount + _nucleolus(depth, rng)
    return np.asarray(np.clip(amount, 0.05, None), np.float32)


def _nucleolus(depth: Float32Array, rng: np.random.Generator) -> Float32Array:
    rows, columns = np.nonzero(depth > 0.45 * depth.max())
    if not len(rows):
        return np.zeros_like(depth)
    k = int(rng.integers(len(rows)))
    grid = pixel_grid((depth.shape[0], depth.shape[1]))
    squared = (grid[0] - rows[k]) ** 2 + (grid[1] - columns[k]) ** 2
    return np.asarray(rng.uniform(0.2, 0.5) * np.exp(-squared / (2 * rng.uniform(1.0, 1.9) ** 2)), np.float32)
