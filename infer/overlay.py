"""Nuclei drawn on their image."""

from __future__ import annotations

import cv2
import numpy as np

from hovernet_cyclic.core.types import SegmentedTile, UInt8Array
from infer.type_info import TypeInfo

_LINE = 1  # px: a wider line hides the border between touching nuclei
_DOT_RADIUS = 3  # px
_DOT = (255, 0, 0)


def draw_overlay(image: UInt8Array, tile: SegmentedTile, types: TypeInfo, dots: bool = False) -> UInt8Array:
    """uint8 (H, W, 3) RGB: the image with each nucleus outlined in the colour of its type.

    image: uint8 (H, W, 3) RGB, left as it is. dots: also mark centroids.
    """
    drawn = np.ascontiguousarray(image).copy()
    for nucleus in tile.nuclei.values():
        cv2.polylines(drawn, [nucleus.contour], True, types.colour(nucleus.type_id), _LINE)
        if dots:
            x, y = (round(value) for value in nucleus.centroid)
            cv2.circle(drawn, (x, y), _DOT_RADIUS, _DOT, cv2.FILLED)
    return drawn


def overlay_file(image: UInt8Array, tile: SegmentedTile, types: TypeInfo, dots: bool = False) -> bytes:
    """`draw_overlay` as the content of a PNG file."""
    encoded = cv2.imencode(".png", draw_overlay(image, tile, types, dots)[..., ::-1])[1]
    return encoded.tobytes()
