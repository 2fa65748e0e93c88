"""Copy-paste: nuclei that are sure, put again beside others and on bare tissue.

A crop of a tile teaches few touching nuclei, since candidates that touch are the ones left out. Pasted, their outlines
are exact wherever they lie, also where they meet or hide each other, and a pale nucleus is seen against tissue that
the pseudo masks never showed it against. (For drawn masks: Ghiasi et al., CVPR 2021.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy import ndimage

from dataloader.augs import LabelledTile, apply_turn, random_turn
from hovernet_cyclic.core.types import BoolArray, Int32Array, UInt8Array

BESIDE_ANOTHER = 0.7  # share of the pasted that is put against a nucleus of the crop; the others lie anywhere
TOUCHING = (0.8, 1.15)  # distance of two centres over the sum of the radii of discs of the same areas
MOST_HIDDEN = 0.35  # share of a nucleus that a pasted one may hide
MARGIN = 2  # px round a nucleus that are kept, for the soft seam
SEAM = 0.8  # px, standard deviation of the seam


class Cutout(NamedTuple):
    """A nucleus cut out of its tile: image uint8 (h, w, 3) RGB with a margin of MARGIN px, mask bool (h, w)."""

    image: UInt8Array
    mask: BoolArray


def cut_out(image: UInt8Array, inst_map: Int32Array, ids: Sequence[int]) -> tuple[Cutout, ...]:
    """Those of the nuclei `ids` that are on the tile, copied.

    image: uint8 (H, W, 3) RGB. inst_map: int32 (H, W), 0 background.
    """
    boxes = ndimage.find_objects(inst_map)
    found = []
    for inst_id in (inst_id for inst_id in ids if inst_id <= len(boxes) and boxes[inst_id - 1] is not None):
        rows, columns = (slice(max(0, side.start - MARGIN), side.stop + MARGIN) for side in boxes[inst_id - 1])
        found.append(Cutout(image[rows, columns].copy(), inst_map[rows, columns] == inst_id))
    return tuple(found)


def paste(tile: LabelledTile, cutouts: Sequence[Cutout], count: int, rng: np.random.Generator) -> LabelledTile:
    """The tile with up to `count` of `cutouts` in it, drawn at random, turned and mirrored; the tile itself stays.

    A pasted nucleus gets a number of its own above the tile's, is trusted, and hides what lies under it; one that
    would hide more than MOST_HIDDEN of another, or reach over the edge, is left out. Types are not told of it (0).
    """
    if not len(cutouts):
        return tile
    sheet = _Sheet(tile)
    for _ in range(count):
        cutout = _turned(cutouts[int(rng.integers(len(cutouts)))], rng)
        sheet.place(cutout, sheet.somewhere(cutout, rng))
    return sheet.tile()


def _turned(cutout: Cutout, rng: np.random.Generator) -> Cutout:
    turn = random_turn(True, rng)
    return Cutout(apply_turn(cutout.image, turn), apply_turn(cutout.mask, turn))


class _Sheet:
    """A tile that nuclei are pasted on."""

    def __init__(self, tile: LabelledTile) -> None:
        self._image, self._inst_map, self._trusted = tile.image.copy(), tile.inst_map.copy(), tile.trusted.copy()
        self._type_map = None if tile.type_map is None else tile.type_map.copy()
        flat = self._inst_map.ravel()
        areas = np.bincount(flat, minlength=1)
        rows, columns = (np.bincount(flat, place.ravel(), areas.size) for place in np.indices(tile.inst_map.shape))
        self._areas: list[int] = areas.tolist()
        present = np.flatnonzero(areas[1:]) + 1
        self._discs = [(rows[i] / areas[i], columns[i] / areas[i], float(np.sqrt(areas[i] / np.pi))) for i in present]

    def somewhere(self, cutout: Cutout, rng: np.random.Generator) -> tuple[float, float]:
        """A random place (row, column) for the centre of a cutout."""
        if self._discs and rng.random() < BESIDE_ANOTHER:
            row, column, radius = self._discs[int(rng.integers(len(self._discs)))]
            distance = (radius + _radius(cutout.mask)) * rng.uniform(*TOUCHING)
            angle = rng.uniform(0, 2 * np.pi)
            return row + distance * float(np.sin(angle)), column + distance * float(np.cos(angle))
        height, width = self._inst_map.shape
        return rng.uniform(0, height), rng.uniform(0, width)

    def place(self, cutout: Cutout, centre: tuple[float, float]) -> None:
        """Paste a cutout round `centre`, or leave it where it cannot lie."""
        height, width = cutout.mask.shape
        top, left = int(centre[0] - height / 2), int(centre[1] - width / 2)
        inside = 0 <= top <= self._inst_map.shape[0] - height and 0 <= left <= self._inst_map.shape[1] - width
        window = slice(top, top + height), slice(left, left + width)
        if not inside or self._hides_too_much(self._inst_map[window][cutout.mask]):
            return
        share = cv2.GaussianBlur(cutout.mask.astype(np.float32), (0, 0), SEAM)[..., None]
        blended = self._image[window] * (1 - share) + cutout.image * share
        self._image[window] = (blended + 0.5).astype(np.uint8)
        self._inst_map[window][cutout.mask] = len(self._areas)
        self._trusted[window][cutout.mask] = True
        if self._type_map is not None:
            self._type_map[window][cutout.mask] = 0
        self._areas.append(int(np.count_nonzero(cutout.mask)))
        self._discs.append((*centre, _radius(cutout.mask)))

    def _hides_too_much(self, under: Int32Array) -> bool:
        hidden = np.bincount(under, minlength=1)
        return any(hidden[i] > MOST_HIDDEN * self._areas[i] for i in np.flatnonzero(hidden[1:]) + 1)

    def tile(self) -> LabelledTile:
        """What it has become."""
        return LabelledTile(self._image, self._inst_map, self._trusted, self._type_map)


def _radius(mask: BoolArray) -> float:
    """px, of the disc of the same area."""
    return float(np.sqrt(np.count_nonzero(mask) / np.pi))
