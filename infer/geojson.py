"""Nuclei as GeoJSON that QuPath opens: one detection each, outlined along the edges of its pixels.

In QuPath pixel (column c, row r) is the square from (c, r) to (c + 1, r + 1). An outline through pixel centres, as
hover_net's contours are, would be half a pixel off there and too small by half its length; one along pixel edges has
the area of the nucleus, and neighbours share their border without an overlap.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from hovernet_cyclic.core.types import BoolArray, Nucleus, SegmentedTile, UInt8Array
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
                **_measurements(inst_id, nucleus, int(mask.sum()), tile.mpp),
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
    origin = np.array([nucleus.bbox.left, nucleus.bbox.top])
    rings = [(np.array(ring) + origin).tolist() for ring in outlines(mask)]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings}
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}


def outlines(mask: UInt8Array) -> list[Ring]:
    """Closed rings of (x, y) corners, one per piece of the mask whose pixels touch by their sides; holes are filled.

    mask: uint8 (H, W), 0 or 1. A ring runs clockwise as seen on a screen, along the pixels' edges, and never
    crosses or touches itself.
    """
    count, pieces = cv2.connectedComponents(mask, connectivity=4)
    return [_outline((pieces == piece).astype(np.uint8)) for piece in range(1, count)]


def _outline(piece: UInt8Array) -> Ring:
    """The ring of one piece."""
    padded = np.pad(piece, 1)
    # Filled by their sides, holes leave no corner where the border meets itself: each corner has one way on.
    _, beyond = cv2.connectedComponents(1 - padded, connectivity=4)
    filled = beyond != beyond[0, 0]
    width = filled.shape[1] + 1  # of the grid of corners
    onward = _onward(filled, width)
    start = next(iter(onward))
    ring, corner, heading = [], start, 0
    while True:
        following = onward[corner]
        if following - corner != heading:  # corners along a straight edge are left out
            ring.append([corner % width - 1, corner // width - 1])
            heading = following - corner
        corner = following
        if corner == start:
            break
    return [*ring, ring[0]]


def _onward(filled: BoolArray, width: int) -> dict[int, int]:
    """For each corner of the border the next one, clockwise; corners are numbered row by row, `width` in a row.

    The first is the left end of the topmost edge, where the border turns.
    """
    inner = filled[1:-1, 1:-1]
    edges = (
        (inner & ~filled[:-2, 1:-1], 0, 1),  # top edges, to the right
        (inner & ~filled[1:-1, 2:], 1, width + 1),  # right edges, downwards
        (inner & ~filled[2:, 1:-1], width + 1, width),  # bottom edges, to the left
        (inner & ~filled[1:-1, :-2], width, 0),  # left edges, upwards
    )
    onward: dict[int, int] = {}
    for edge, begin, end in edges:
        rows, columns = np.nonzero(edge)
        corner = (rows + 1) * width + columns + 1
        onward.update(zip((corner + begin).tolist(), (corner + end).tolist(), strict=True))
    return onward
