"""Where a slide holds tissue: found on a coarse view of it, or told by a PNG or by QuPath's GeoJSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dataloader.slides import SlideScale, SlideView, view_at
from hovernet_cyclic.core.errors import SlideError, UnreadableRegionError
from hovernet_cyclic.core.types import BoolArray, Box, SlideReader, UInt8Array

_STRIP = 512  # px of the coarse view that are read at a time


@dataclass(frozen=True)
class TissueSettings:
    """How tissue is told from glass, all lengths in um.

    mpp: um/px of the mask. blur_um: side of the median that levels grain. least_chroma, most_chroma: Otsu's threshold
    of the chroma (largest minus least of R, G, B; 0..255) is held between these, as a slide of nothing but tissue, or
    of nothing but glass, has no two classes. close_um: gaps up to this are closed. least_um2: smaller specks are dust.
    largest_hole_um2: smaller holes in tissue are filled. margin_um: the mask is widened by this.
    """

    mpp: float = 8.0
    blur_um: float = 24.0
    least_chroma: int = 10
    most_chroma: int = 40
    close_um: float = 48.0
    least_um2: float = 10_000.0
    largest_hole_um2: float = 40_000.0
    margin_um: float = 16.0


@dataclass(frozen=True)
class TissueMask:
    """mask: bool (H, W), True for tissue. size: (H, W) px of the view at the network's mpp that it stands for."""

    mask: BoolArray
    size: tuple[int, int]

    def _bounds(self, box: Box) -> Box:
        """The mask's pixels that a box of the view touches."""
        down, across = self.mask.shape[0] / self.size[0], self.mask.shape[1] / self.size[1]
        top, left = int(box.top * down), int(box.left * across)
        bottom, right = int(np.ceil(box.bottom * down)), int(np.ceil(box.right * across))
        return Box(top, left, max(bottom, top + 1), max(right, left + 1))

    def touches(self, box: Box) -> bool:
        """Whether a box, px of the view, holds any tissue."""
        part = self._bounds(box)
        return bool(self.mask[part.top : part.bottom, part.left : part.right].any())

    def at(self, points: Any) -> BoolArray:
        """bool (N,): which points (N, 2) x, y, px of the view, lie on tissue."""
        x, y = np.asarray(points, np.float64).reshape(-1, 2).T
        rows = ((y + 0.5) * (self.mask.shape[0] / self.size[0])).astype(int).clip(0, self.mask.shape[0] - 1)
        columns = ((x + 0.5) * (self.mask.shape[1] / self.size[1])).astype(int).clip(0, self.mask.shape[1] - 1)
        return np.asarray(self.mask[rows, columns])

    def share_in(self, box: Box) -> float:
        """Share of a box, px of the view, that is tissue."""
        part = self._bounds(box)
        return float(self.mask[part.top : part.bottom, part.left : part.right].mean())

    @property
    def share(self) -> float:
        """Share of the slide's area that is tissue."""
        return float(self.mask.mean())


def read_coarsely(reader: SlideReader, scale: SlideScale, mpp: float) -> UInt8Array:
    """uint8 (H, W, 3) RGB of the whole slide at `mpp`, read in strips; what cannot be read is white."""
    view = view_at(reader, scale, mpp)
    image = np.full((*view.shape, 3), 255, np.uint8)
    for box in _strips(view):
        try:
            image[box.top : box.bottom, box.left : box.right] = view.read(box)
        except UnreadableRegionError:
            continue  # the network's own pass over the region is what names it
    return image


def _strips(view: SlideView) -> Iterator[Box]:
    # So that a slide without coarse levels is not held in memory at level 0.
    side = max(1, int(_STRIP / max(*view.factors, 1.0)) * 8)
    for top in range(0, view.shape[0], side):
        for left in range(0, view.shape[1], side):
            yield Box(top, left, min(top + side, view.shape[0]), min(left + side, view.shape[1]))


def find_tissue(image: UInt8Array, settings: TissueSettings | None = None) -> BoolArray:
    """bool (H, W): tissue on a uint8 (H, W, 3) RGB image at `settings.mpp`. Glass, ink in black and dust are not."""
    wanted = settings or TissueSettings()
    kernel = _odd(wanted.blur_um / wanted.mpp)
    chroma = cv2.medianBlur(np.asarray(image.max(axis=2) - image.min(axis=2), np.uint8), kernel)
    otsu, _ = cv2.threshold(chroma, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    threshold = min(max(otsu, wanted.least_chroma), wanted.most_chroma)
    mask = (chroma >= threshold).astype(np.uint8)
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _disc(wanted.close_um / wanted.mpp)), np.uint8)
    pixel = wanted.mpp**2
    mask = _without_small(mask, wanted.least_um2 / pixel)
    mask = 1 - _without_small(1 - mask, wanted.largest_hole_um2 / pixel)
    return np.asarray(cv2.dilate(mask, _disc(wanted.margin_um / wanted.mpp)), np.uint8) > 0


def _odd(px: float) -> int:
    return max(1, round(px)) // 2 * 2 + 1


def _disc(px: float) -> UInt8Array:
    side = 2 * max(1, round(px)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)


def _without_small(mask: UInt8Array, least: float) -> UInt8Array:
    """The mask without regions of fewer than `least` px."""
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= least
    kept[0] = False
    return np.asarray(kept[numbers], np.uint8)


def given_mask(folder: Path, name: str, reader: SlideReader) -> BoolArray | None:
    """bool (H, W): the mask that a folder holds for a slide: NAME.png (0 is glass) or NAME.geojson; None for neither.

    GeoJSON is as QuPath exports annotations, in px of level 0. Raises SlideError for a file that cannot be used.
    """
    image, polygons = folder / f"{name}.png", folder / f"{name}.geojson"
    if image.is_file():
        # Neither made 8-bit nor grey, either of which would round small numbers of a label map down to 0.
        as_stored = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
        mask = cv2.imdecode(np.frombuffer(image.read_bytes() or b"\0", np.uint8), as_stored)
        if mask is None:
            raise SlideError(f"{image} is damaged or no PNG: export the mask again.")
        return _same_proportions(image, np.asarray(mask.reshape(*mask.shape[:2], -1).any(axis=2)), reader)
    return _drawn(polygons, reader) if polygons.is_file() else None


def _same_proportions(path: Path, mask: BoolArray, reader: SlideReader) -> BoolArray:
    height, width = reader.level_shapes[0]
    if abs(mask.shape[0] / mask.shape[1] / (height / width) - 1) > 0.02 + 1 / min(mask.shape):
        raise SlideError(f"{path} has other proportions ({mask.shape}) than its slide ({height} x {width}): redraw it.")
    return mask


def _drawn(path: Path, reader: SlideReader) -> BoolArray:
    height, width = reader.level_shapes[0]
    step = max(1.0, max(height, width) / 4096)
    mask = np.zeros((max(1, int(height / step)), max(1, int(width / step))), np.uint8)
    try:
        polygons = list(_polygons(json.loads(path.read_text(encoding="utf-8-sig"))))
        for outer, holes in polygons:
            piece = np.zeros_like(mask)
            cv2.fillPoly(piece, [np.round(np.array(outer, np.float64)[:, :2] / step).astype(np.int32)], 1)
            for hole in holes:
                cv2.fillPoly(piece, [np.round(np.array(hole, np.float64)[:, :2] / step).astype(np.int32)], 0)
            mask |= piece
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SlideError(f"{path} is no GeoJSON of polygons ({error}): export the annotations again.") from error
    if not polygons:
        raise SlideError(f"{path} holds no polygon: draw the area as one, or leave this slide out.")
    return mask > 0


def _polygons(content: Any) -> Iterator[tuple[Any, list[Any]]]:
    """(outer ring, holes) of all polygons in a GeoJSON: a collection, a list of features, a feature or a geometry."""
    if isinstance(content, list):
        for item in content:
            yield from _polygons(item)
    elif content["type"] == "FeatureCollection":
        yield from _polygons(content["features"])
    elif content["type"] == "Feature":
        yield from _polygons(content["geometry"])
    elif content["type"] == "GeometryCollection":
        yield from _polygons(content["geometries"])
    elif content["type"] == "Polygon":
        yield content["coordinates"][0], content["coordinates"][1:]
    elif content["type"] == "MultiPolygon":
        yield from ((rings[0], rings[1:]) for rings in content["coordinates"])
