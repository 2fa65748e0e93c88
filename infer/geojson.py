"""Nuclei as GeoJSON that QuPath opens: one detection each, outlined along the edges of its pixels.

In QuPath pixel (column c, row r) is the square from (c, r) to (c + 1, r + 1). An outline through pixel centres, as
hover_net's contours are, would be half a pixel off there and too small by half its length; one along pixel edges has
the area of the nucleus, and neighbours share their border without an overlap.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from hovernet_cyclic.core.types import Nucleus, SegmentedTile, UInt8Array
from infer.type_info import TypeInfo

Ring = list[list[int]]

UNTYPED_NAME = "Nucleus"


def feature_collection(tile: SegmentedTile, types: TypeInfo) -> dict[str, Any]:
    """The tile's nuclei as a GeoJSON FeatureCollection for QuPath 0.4 and later, coordinates in px of the tile.

    Measurements: inst_id, area_px, area_um2 where tile.mpp is known; where there are types type_prob, and 'p(NAME)',
    the mean probability of each type over the nucleus.
    """
    return {"type": "FeatureCollection", "features": [_feature(tile, i, types) for i in tile.nuclei]}


def _feature(tile: SegmentedTile, inst_id: int, types: TypeInfo) -> dict[str, Any]:
    nucleus = tile.nuclei[inst_id]
    mask = _mask(tile, inst_id)
    name = UNTYPED_NAME if nucleus.type_id is None else types.name(nucleus.type_id)
    return {
        "type": "Feature",
        "geometry": _geometry(mask, nucleus),
        "properties": {
            "objectType": "detection",
            "classification": {"name": name, "color": list(types.colour(nucleus.type_id))},
            "measurements": {
                **_measurements(inst_id, nucleus, int(np.count_nonzero(mask)), tile.mpp),
                **_type_measurements(nucleus, types),
            },
        },
    }


def _measurements(inst_id: int, nucleus: Nucleus, area: int, mpp: float | None) -> dict[str, float]:
    measurements: dict[str, float] = {"inst_id": inst_id, "area_px": area}
    if mpp is not None:
        measurements["area_um2"] = round(area * mpp * mpp, 4)
    return measurements


def _type_measurements(nucleus: Nucleus, types: TypeInfo) -> dict[str, float]:
    measurements = {} if nucleus.type_prob is None else {"type_prob": round(nucleus.type_prob, 6)}
    probs = [] if nucleus.type_probs is None else nucleus.type_probs.tolist()
    return {**measurements, **{f"p({types.name(i)})": round(prob, 6) for i, prob in enumerate(probs)}}


def _mask(tile: SegmentedTile, inst_id: int) -> UInt8Array:
    box = tile.nuclei[inst_id].bbox
    inside: UInt8Array = (tile.inst_map[box.top : box.bottom, box.left : box.right] == inst_id).astype(np.uint8)
    return inside


def _geometry(mask: UInt8Array, nucleus: Nucleus) -> dict[str, Any]:
    """A Polygon; a MultiPolygon where the nucleus is in pieces that touch at corners at most."""
    rings = outlines(mask, (nucleus.bbox.left, nucleus.bbox.top))
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings}
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}


def outlines(mask: UInt8Array, origin: tuple[int, int] = (0, 0)) -> list[Ring]:
    """Closed rings of (x, y) corners, one per piece of the mask whose pixels touch by their sides; holes are filled.

    mask: uint8 (H, W), 0 or 1. origin: x, y of its top left corner. A ring begins at the left end of its topmost edge
    and runs clockwise as seen on a screen, along the pixels' edges, and never crosses or touches itself.
    """
    count, pieces = cv2.connectedComponents(mask, connectivity=4)
    if count == 2:
        return [_outline(mask, origin)]
    return [_outline((pieces == piece).astype(np.uint8), origin) for piece in range(1, count)]


def _outline(piece: UInt8Array, origin: tuple[int, int]) -> Ring:
    """The ring of one piece."""
    # Twice as large, each pixel is four, one at each of its corners. The contour, anticlockwise, turns at the one of a
    # corner that points outwards, and steps aslant between two of a corner that points inwards. It does so as well
    # where pixels touch at a corner only, and leaves out what they enclose.
    large = cv2.resize(piece, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    start = (2 * origin[0], 2 * origin[1])
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=start)
    points = np.asarray(contours[0], np.int32)[:, 0]
    closed = (np.concatenate([points[:1], points[::-1]]) + 1) >> 1
    x, y = closed.T
    differs = np.ones(len(closed), np.bool_)
    np.logical_or(x[1:] != x[:-1], y[1:] != y[:-1], out=differs[1:])
    ring: Ring = closed.compress(differs, axis=0).tolist()
    return ring
