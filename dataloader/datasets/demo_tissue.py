"""Drawn tissue without nuclei: stroma, cell-rich sheets, glands, fat, vessels with red cells, mucin, glass, debris."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dataloader.datasets.demo_texture import (
    Shape,
    fibre_noise,
    fractal_noise,
    polar_radius,
    smooth_noise,
    soft_step,
)
from hovernet_cyclic.core.types import BoolArray, Float32Array, Int32Array


@dataclass(frozen=True)
class Gland:
    """A ring of epithelium. centre: (row, column) px; axes: outer semi-axes px; angle: radians; lumen: inner share."""

    centre: tuple[float, float]
    axes: tuple[float, float]
    angle: float
    lumen: float


@dataclass
class Tissue:
    """Amounts of dye in one drawn field, in optical density along unit stain vectors.

    haematoxylin, eosin, blood: float32 (H, W) >= 0. inst_map: int32 (H, W), nuclei drawn so far. empty: bool (H, W),
    where no nucleus may lie. sheet: bool (H, W), where cells lie densely. ring: bool (H, W), epithelium of glands,
    whose nuclei stand in order. fibre_angle: radians from the x axis.
    """

    haematoxylin: Float32Array
    eosin: Float32Array
    blood: Float32Array
    inst_map: Int32Array
    empty: BoolArray
    sheet: BoolArray
    ring: BoolArray
    fibre_angle: float
    glands: list[Gland] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        """(H, W) in px."""
        height, width = self.inst_map.shape
        return height, width


@dataclass(frozen=True)
class TissuePlan:
    """What one field holds. sheet_share: share of dense cells, 0 to 1; the others count things per 512 x 512 px."""

    sheet_share: float
    glands: int = 0
    vacuoles: int = 0
    vessels: int = 0
    debris: int = 0
    mucin: bool = False
    glass: float = 0.03


def draw_tissue(shape: Shape, plan: TissuePlan, rng: np.random.Generator) -> Tissue:
    """A field of `shape` (H, W) px as planned, without nuclei."""
    tissue = _stroma(shape, rng)
    _add_sheet(tissue, plan.sheet_share, rng)
    if plan.mucin:
        _add_mucin(tissue, rng)
    area = shape[0] * shape[1] / 512**2
    for count, add in ((plan.glands, _add_gland), (plan.vacuoles, _add_vacuole), (plan.vessels, _add_vessel)):
        for _ in range(_whole(count * area, rng)):
            add(tissue, rng)
    _add_glass(tissue, plan.glass, rng)
    for _ in range(_whole(plan.debris * area, rng)):
        _add_debris(tissue, rng)
    return tissue


def _whole(expected: float, rng: np.random.Generator) -> int:
    return int(expected + rng.random())


def _stroma(shape: Shape, rng: np.random.Generator) -> Tissue:
    angle = float(rng.uniform(0, np.pi))
    strands = fibre_noise(shape, angle, rng) * soft_step(fractal_noise(shape, 80, rng), -0.3, 2.5)
    density = 1 + 0.22 * fractal_noise(shape, 120, rng)
    slits = soft_step(strands + 0.5 * smooth_noise(shape, 40, rng), -2.1, 0.7)
    eosin = (0.36 + 0.085 * strands + 0.025 * smooth_noise(shape, 2, rng)) * density * (0.25 + 0.75 * slits)
    haematoxylin = (0.07 + 0.018 * strands + 0.015 * fractal_noise(shape, 60, rng)) * density * slits
    return Tissue(
        haematoxylin=np.clip(haematoxylin, 0, None),
        eosin=np.clip(eosin, 0.01, None),
        blood=np.zeros(shape, np.float32),
        inst_map=np.zeros(shape, np.int32),
        empty=np.zeros(shape, bool),
        sheet=np.zeros(shape, bool),
        ring=np.zeros(shape, bool),
        fibre_angle=angle,
    )


def _lay(tissue: Tissue, cover: Float32Array, haematoxylin: Float32Array, eosin: Float32Array) -> None:
    """Replaces dye by the given amounts where `cover` (float32 (H, W), 0 to 1) is 1."""
    tissue.haematoxylin += cover * (np.clip(haematoxylin, 0, None) - tissue.haematoxylin)
    tissue.eosin += cover * (np.clip(eosin, 0, None) - tissue.eosin)
    tissue.blood *= 1 - cover


def _cytoplasm(shape: Shape, rng: np.random.Generator) -> tuple[Float32Array, Float32Array]:
    """Haematoxylin and eosin of cell bodies: granular, foamy where the amount dips."""
    basophilia = rng.uniform(0.06, 0.20)
    foam = fractal_noise(shape, rng.uniform(6, 14), rng)
    grain = smooth_noise(shape, 2, rng)
    drift = smooth_noise(shape, 60, rng)
    haematoxylin = basophilia * (1 + 0.25 * foam + 0.15 * grain + 0.25 * drift)
    eosin = rng.uniform(0.22, 0.36) * (1 + 0.20 * foam + 0.10 * grain + 0.15 * drift)
    return np.asarray(haematoxylin, np.float32), np.asarray(eosin, np.float32)


def _add_sheet(tissue: Tissue, share: float, rng: np.random.Generator) -> None:
    if share <= 0:
        return
    relief = fractal_noise(tissue.shape, 150, rng)
    edge = float(np.quantile(relief, 1 - min(share, 1.0))) if share < 1 else -np.inf
    cover = soft_step(relief, edge, 0.12) if share < 1 else np.ones(tissue.shape, np.float32)
    _lay(tissue, cover, *_cytoplasm(tissue.shape, rng))
    tissue.sheet |= cover > 0.5


def _add_mucin(tissue: Tissue, rng: np.random.Generator) -> None:
    """Pale blue wisps: haematoxylin that is no nucleus."""
    streaks = 0.25 * fibre_noise(tissue.shape, rng.uniform(0, np.pi), rng)
    wisps = np.asarray(np.clip(1 + streaks + 0.4 * fractal_noise(tissue.shape, 26, rng), 0, None), np.float32)
    cover = soft_step(fractal_noise(tissue.shape, 110, rng), 0.6, 0.5)
    _lay(tissue, cover, np.float32(0.03) + np.float32(0.09) * wisps, np.float32(0.03) + np.float32(0.04) * wisps)
    tissue.empty |= cover > 0.5


def _place(tissue: Tissue, rng: np.random.Generator) -> tuple[float, float]:
    height, width = tissue.shape
    return float(rng.uniform(0, height)), float(rng.uniform(0, width))


def _blob(tissue: Tissue, axes: tuple[float, float], wobble: float, rng: np.random.Generator) -> Float32Array:
    """Distance from a random place in units of a wobbly ellipse: float32 (H, W), 1 on its edge."""
    radius = polar_radius(tissue.shape, _place(tissue, rng), axes, rng.uniform(0, np.pi))
    waves = np.clip(smooth_noise(tissue.shape, max(axes) * 0.8, rng), -2, 2)  # unbounded, it would open spots far away
    return np.asarray(radius * (1 + wobble * waves), np.float32)


def _add_gland(tissue: Tissue, rng: np.random.Generator) -> None:
    long = rng.uniform(55, 105)
    axes = (long, long * rng.uniform(0.6, 1.0))
    gland = Gland(_place(tissue, rng), axes, rng.uniform(0, np.pi), rng.uniform(0.3, 0.55))
    radius = polar_radius(tissue.shape, gland.centre, gland.axes, gland.angle)
    if np.any((tissue.empty | tissue.ring) & (radius < 1.1)):
        return
    bumps = radius * (1 + 0.05 * smooth_noise(tissue.shape, 25, rng))
    _lay(tissue, 1 - soft_step(bumps, 1.05, 0.06), *_cytoplasm(tissue.shape, rng))
    membrane = np.exp(-(((bumps - 1.07) / 0.025) ** 2))
    tissue.eosin += np.asarray(0.18 * membrane, np.float32)
    _lumen(tissue, 1 - soft_step(bumps, gland.lumen, 0.07), rng)
    tissue.sheet &= radius > 1.15
    tissue.glands.append(gland)
    tissue.ring |= radius < 1.1


def _lumen(tissue: Tissue, cover: Float32Array, rng: np.random.Generator) -> None:
    secretion = rng.choice([0.0, 0.12, 0.3]) * soft_step(fractal_noise(tissue.shape, 30, rng), 0.3, 0.8)
    thin = np.full(tissue.shape, 0.015, np.float32)
    _lay(tissue, cover, thin + 0.15 * secretion, thin + secretion)
    tissue.empty |= cover > 0.3


def _add_vacuole(tissue: Tissue, rng: np.random.Generator) -> None:
    """Fat: clear, round, with a thin rim; neighbours overlap into a foam."""
    size = rng.uniform(22, 55)
    radius = _blob(tissue, (size, size * rng.uniform(0.8, 1.0)), 0.04, rng)
    clear = 1 - soft_step(radius, 1.0, 2.5 / size)
    _lay(tissue, clear, np.full(tissue.shape, 0.004, np.float32), np.full(tissue.shape, 0.012, np.float32))
    rim = np.exp(-(((radius - 1.05) * size / 1.8) ** 2))
    tissue.eosin += np.asarray(0.10 * rim, np.float32)
    tissue.empty |= clear > 0.1


def _add_vessel(tissue: Tissue, rng: np.random.Generator) -> None:
    """A clear slit filled with red cells: no nucleus, much colour."""
    long = rng.uniform(35, 90)
    radius = _blob(tissue, (long, long * rng.uniform(0.3, 0.6)), 0.12, rng)
    inside = 1 - soft_step(radius, 1.0, 0.06)
    _lay(tissue, inside, np.full(tissue.shape, 0.01, np.float32), np.full(tissue.shape, 0.03, np.float32))
    tissue.eosin += np.asarray(0.2 * np.exp(-(((radius - 1.08) / 0.06) ** 2)), np.float32)
    tissue.empty |= inside > 0.1
    _red_cells(tissue, inside > 0.8, rng)


def _red_cells(tissue: Tissue, where: BoolArray, rng: np.random.Generator) -> None:
    rows, columns = np.nonzero(where)
    if not len(rows):
        return
    for k in rng.integers(0, len(rows), _whole(len(rows) / rng.uniform(250, 900), rng)):
        size = rng.uniform(8, 12)
        box = _box(tissue.shape, rows[k], columns[k], 20)
        centre = (float(rows[k] - box[0].start), float(columns[k] - box[1].start))
        small = (box[0].stop - box[0].start, box[1].stop - box[1].start)
        radius = polar_radius(small, centre, (size, size * rng.uniform(0.6, 1)), rng.uniform(0, np.pi))
        disc = 1 - soft_step(radius, 1.0, 1.5 / size)
        amount = rng.uniform(0.4, 0.65) * disc * (0.75 + 0.25 * np.clip(radius, 0, 1))  # paler in the middle
        tissue.blood[box] = np.maximum(tissue.blood[box], amount)


def _box(shape: Shape, row: int, column: int, reach: int) -> tuple[slice, slice]:
    return (
        slice(max(0, int(row) - reach), min(shape[0], int(row) + reach + 1)),
        slice(max(0, int(column) - reach), min(shape[1], int(column) + reach + 1)),
    )


def _add_glass(tissue: Tissue, share: float, rng: np.random.Generator) -> None:
    """Tears: the quantile of a noise, so that `share` of the field is clear."""
    if share <= 0:
        return
    relief = fractal_noise(tissue.shape, 90, rng)
    clear = soft_step(relief, float(np.quantile(relief, 1 - share)), 0.08)
    zero = np.zeros(tissue.shape, np.float32)
    _lay(tissue, clear, zero, zero)
    tissue.empty |= clear > 0.1
    tissue.sheet &= ~tissue.empty


def _add_debris(tissue: Tissue, rng: np.random.Generator) -> None:
    """A dark eosin clump of about a nucleus' size: what only colour tells from a nucleus."""
    size = rng.uniform(8, 16)
    radius = _blob(tissue, (size, size * rng.uniform(0.4, 1)), 0.25, rng)
    clump = (1 - soft_step(radius, 1.0, 3.0 / size)) * ~tissue.empty
    grain = 1 + 0.2 * smooth_noise(tissue.shape, 3, rng)
    tissue.eosin += np.asarray(rng.uniform(0.25, 0.6) * clump * grain, np.float32)
    tissue.blood += np.asarray(rng.uniform(0, 0.25) * clump, np.float32)
