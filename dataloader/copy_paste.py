"""Copy-paste: nuclei that are sure, put again beside others and on bare tissue.

A crop of a tile teaches few touching nuclei, since candidates that touch are the ones left out. Pasted, their outlines
are exact wherever they lie, also where they meet or hide each other, and a pale nucleus is seen against tissue that
the pseudo masks never showed it against. (For drawn masks: Ghiasi et al., CVPR 2021.)

They are also varied in ways that the sure ones are not: in size, and in how dark their inside is. A vesicular nucleus
(open chromatin) is dark at its rim alone, so that no map of darkness shows it as one region; made from a dark one by
letting the surroundings shine through its inside, its outline is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy import ndimage

from dataloader.augs import LabelledTile
from hovernet_cyclic.core.types import BoolArray, Float32Array, Int32Array, UInt8Array

BESIDE_ANOTHER = 0.7  # share of the pasted that is put against a nucleus of the crop; the others lie anywhere
TOUCHING = (0.8, 1.15)  # distance of two centres over the sum of the radii of discs of the same areas
MOST_HIDDEN = 0.35  # share of a nucleus that a pasted one may hide
MARGIN = 2  # px round a nucleus that are kept, for the soft seam
SEAM = 0.8  # px, standard deviation of the seam
SIDES = (0.75, 1.5)  # by how much a pasted nucleus is longer and wider than it was
SLENDER = (0.85, 1.15)  # and beyond that, along each of two axes
RIM = (1.0, 3.0)  # px, thickness of what stays dark of a nucleus whose inside is made pale
PALENESS = (0.25, 0.8)  # share of the surroundings' colour inside
WHITER = 0.3  # the largest share of white in that colour
TEXTURE = 0.8  # share of the inside's own texture that stays
SAMPLED = 12  # pixels that this colour is the mean of
SOFT = 1.5  # px from the rim to the inside


class Cutout(NamedTuple):
    """A nucleus cut out of its tile: image uint8 (h, w, 3) RGB with a margin of MARGIN px, mask bool (h, w)."""

    image: UInt8Array
    mask: BoolArray


def cut_out(image: UInt8Array, inst_map: Int32Array, ids: Sequence[int]) -> tuple[Cutout, ...]:
    """Those of the nuclei `ids` that lie whole on the tile, copied: its border may have cut off a part of others.

    image: uint8 (H, W, 3) RGB. inst_map: int32 (H, W), 0 background.
    """
    boxes = ndimage.find_objects(inst_map)
    found = []
    for inst_id in (
        inst_id for inst_id in ids if inst_id <= len(boxes) and _inside(boxes[inst_id - 1], inst_map.shape)
    ):
        rows, columns = (slice(max(0, side.start - MARGIN), side.stop + MARGIN) for side in boxes[inst_id - 1])
        found.append(Cutout(image[rows, columns].copy(), inst_map[rows, columns] == inst_id))
    return tuple(found)


def _inside(box: tuple[slice, slice] | None, shape: tuple[int, ...]) -> bool:
    """Whether a box (rows, columns) keeps off the border of a map."""
    return box is not None and all(side.start > 0 and side.stop < size for side, size in zip(box, shape, strict=True))


def paste(
    tile: LabelledTile, cutouts: Sequence[Cutout], count: int, rng: np.random.Generator, pale_share: float = 0.0
) -> LabelledTile:
    """The tile with up to `count` of `cutouts` in it, drawn at random, turned and stretched; the tile itself stays.

    pale_share: of those pasted, the share whose inside is made pale.

    A pasted nucleus gets a number of its own above the tile's, is trusted, and hides what lies under it; one that
    would hide more than MOST_HIDDEN of another, or reach over the edge, is left out. Types are not told of it (0).
    """
    if not len(cutouts):
        return tile
    sheet = _Sheet(tile)
    for _ in range(count):
        cutout = stretched(cutouts[int(rng.integers(len(cutouts)))], rng)
        if rng.random() < pale_share:
            cutout = vesicular(cutout, sheet.around(rng), rng)
        sheet.place(cutout, sheet.somewhere(cutout, rng))
    return sheet.tile()


def stretched(cutout: Cutout, rng: np.random.Generator) -> Cutout:
    """The cutout stretched along two axes (see SIDES), turned by any angle, and mirrored or not."""
    turn, axis = rng.uniform(0, 2 * np.pi, 2)
    size = np.exp(rng.uniform(*np.log(SIDES)))
    sides = size * rng.uniform(*SLENDER, 2) * (1, rng.choice((-1, 1)))
    linear = _rotation(turn) @ np.diag(sides) @ _rotation(axis)
    before = np.array(cutout.mask.shape[::-1])
    after = np.ceil(np.abs(linear) @ before).astype(int)
    matrix = np.column_stack([linear, (after - 1) / 2 - linear @ ((before - 1) / 2)])
    shape = (int(after[0]), int(after[1]))
    mask = cv2.warpAffine(cutout.mask.astype(np.float32), matrix, shape, flags=cv2.INTER_LINEAR) > 0.5
    image = cv2.warpAffine(cutout.image, matrix, shape, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return Cutout(np.asarray(image, np.uint8), mask)


def _rotation(angle: float) -> Float32Array:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)


def vesicular(cutout: Cutout, around: Float32Array, rng: np.random.Generator) -> Cutout:
    """The cutout with a pale inside, of the colour `around` (float (3,) RGB) and at times whiter; its rim stays."""
    depth = cv2.distanceTransform(cutout.mask.astype(np.uint8), cv2.DIST_L2, 3)
    rim = min(rng.uniform(*RIM), 0.5 * float(depth.max(initial=0)))
    share = rng.uniform(*PALENESS) * np.clip((depth - rim) / SOFT, 0, 1)[..., None]
    own = cutout.image - cutout.image[cutout.mask].mean(axis=0)
    inside = around + rng.uniform(0, WHITER) * (255 - around) + TEXTURE * own
    blended = cutout.image * (1 - share) + inside * share
    return Cutout((blended + 0.5).clip(0, 255).astype(np.uint8), cutout.mask)


class _Sheet:
    """A tile that nuclei are pasted on."""

    def __init__(self, tile: LabelledTile) -> None:
        self._image, self._inst_map, self._trusted = tile.image.copy(), tile.inst_map.copy(), tile.trusted.copy()
        self._type_map = None if tile.type_map is None else tile.type_map.copy()
        flat = self._inst_map.ravel()
        areas = np.bincount(flat, minlength=1)
        rows, columns = (np.bincount(flat, place.ravel(), areas.size) for place in np.indices(tile.inst_map.shape))
        self._areas: list[int] = areas.tolist()
        self._visible = list(self._areas)
        present = np.flatnonzero(areas[1:]) + 1
        self._discs = [(rows[i] / areas[i], columns[i] / areas[i], float(np.sqrt(areas[i] / np.pi))) for i in present]

    def around(self, rng: np.random.Generator) -> Float32Array:
        """float32 (3,) RGB: the mean colour of a few places outside of nuclei, drawn at random."""
        places = rng.integers(self._inst_map.size, size=SAMPLED)
        outside = places[self._inst_map.ravel()[places] == 0]
        colours = self._image.reshape(-1, 3)[outside if len(outside) else places]
        return np.asarray(colours.mean(axis=0), np.float32)

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
        top, left = round(centre[0] - height / 2), round(centre[1] - width / 2)
        inside = 0 <= top <= self._inst_map.shape[0] - height and 0 <= left <= self._inst_map.shape[1] - width
        if not inside:
            return
        window = slice(top, top + height), slice(left, left + width)
        under = np.bincount(self._inst_map[window][cutout.mask], minlength=1)
        hidden = {int(i): int(under[i]) for i in np.flatnonzero(under[1:]) + 1}
        if any(self._visible[i] - count < (1 - MOST_HIDDEN) * self._areas[i] for i, count in hidden.items()):
            return
        for i, count in hidden.items():
            self._visible[i] -= count
        share = cv2.GaussianBlur(cutout.mask.astype(np.float32), (0, 0), SEAM)[..., None]
        blended = self._image[window] * (1 - share) + cutout.image * share
        self._image[window] = (blended + 0.5).astype(np.uint8)
        self._inst_map[window][cutout.mask] = len(self._areas)
        self._trusted[window][cutout.mask] = True
        if self._type_map is not None:
            self._type_map[window][cutout.mask] = 0
        self._areas.append(int(np.count_nonzero(cutout.mask)))
        self._visible.append(self._areas[-1])
        self._discs.append((*centre, _radius(cutout.mask)))

    def tile(self) -> LabelledTile:
        """What it has become."""
        return LabelledTile(self._image, self._inst_map, self._trusted, self._type_map)


def _radius(mask: BoolArray) -> float:
    """px, of the disc of the same area."""
    return float(np.sqrt(np.count_nonzero(mask) / np.pi))
