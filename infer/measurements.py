"""What is measured of one nucleus."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from dataloader.stain import mean_haematoxylin
from hovernet_cyclic.core.types import Float32Array, Int32Array, UInt8Array

# Names as in the files, units in them.
MEASURES = ("area_um2", "perimeter_um", "eccentricity", "solidity", "haematoxylin", "prob")
Mpp = tuple[float, float]


class Outline(NamedTuple):
    """contour: int32 (K, 2) x, y through the border's pixels. corners: int32 (L, 2) x, y along their edges."""

    contour: Int32Array
    corners: Int32Array


def measure(
    mask: UInt8Array, outline: Outline, np_prob: Float32Array, image: UInt8Array, mpp: Mpp
) -> tuple[float, ...]:
    """MEASURES of a nucleus, in this order.

    mask: uint8 (H, W), 0 or 1. outline: of it. np_prob: float32 (H, W), and image: uint8 (H, W, 3) RGB, on the same
    box. mpp: um/px (down, across).
    """
    area = int(mask.sum())
    inside = mask > 0
    return (
        area * mpp[0] * mpp[1],
        perimeter(outline.contour, mpp),
        eccentricity(mask, mpp),
        solidity(outline.corners, area),
        mean_haematoxylin(image[inside]),
        float(np_prob[inside].mean(dtype=np.float64)),
    )


def perimeter(contour: Int32Array, mpp: Mpp) -> float:
    """um. Steps from pixel to pixel overrate a smooth line, so they count 0.948 along the grid and 1.340 across it.

    Source: Kulpa, Area and perimeter measurement of blobs in discrete binary pictures, Computer Graphics and Image
    Processing 6, 1977. The contour runs through pixel centres, half a pixel inside the true border: pushed out by d, a
    convex line is longer by 2 pi d (Steiner's formula).
    """
    steps = np.abs(np.diff(contour, axis=0, append=contour[:1]))
    lengths = steps.max(axis=1)
    across = int(lengths[steps.min(axis=1) > 0].sum())
    along = int(lengths.sum()) - across
    return (0.948 * along + 1.340 * across + math.pi) * math.sqrt(mpp[0] * mpp[1])


def eccentricity(mask: UInt8Array, mpp: Mpp) -> float:
    """0 (circle) to 1 (line): of the ellipse with the mask's second moments, a pixel's own included."""
    moments = cv2.moments(mask, binaryImage=True)
    area = moments["m00"]
    xx = (moments["mu20"] / area + 1 / 12) * mpp[1] ** 2
    yy = (moments["mu02"] / area + 1 / 12) * mpp[0] ** 2
    xy = moments["mu11"] / area * mpp[0] * mpp[1]
    middle, spread = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    return math.sqrt(max(0.0, 1 - (middle - spread) / (middle + spread)))


def solidity(corners: Int32Array, area: int) -> float:
    """Share of the convex hull, drawn round the pixels' corners, that the nucleus fills.

    corners: int32 (K, 2) x, y of its outlines. area: px.
    """
    return area / cv2.contourArea(cv2.convexHull(corners))


def centroid(mask: npt.NDArray[np.uint8], left: int, top: int) -> tuple[float, float]:
    """(x, y) of the mean of the mask's pixels, (left, top) being its first. One sum only, so that it is the same
    wherever the cut-out begins.
    """
    moments = cv2.moments(mask, binaryImage=True)
    return moments["m10"] / moments["m00"] + left, moments["m01"] / moments["m00"] + top
