"""hover_net's way from an image to nuclei, restated step by step to be measured against (vqdang/hover_net, tile mode).

Patches of 256 x 256 px that answer for 164 x 164, in float32, one batch after the other; then post-processing by the
reference's arithmetic, for each nucleus over the whole tile. Nothing overlaps, nothing is shared with the product but
the network and the kernels of SciPy, scikit-image and OpenCV that the original calls too.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from skimage.segmentation import watershed

from models.hovernet.net_desc import HoVerNet

WINDOW, ANSWER = 256, 164
Array = npt.NDArray[Any]


def corners(length: int) -> range:
    """Where windows begin along an axis of the padded image."""
    return range(0, -(-length // ANSWER) * ANSWER, ANSWER)


def padded(image: Array) -> Array:
    """The image, uint8 (H, W, 3), mirrored as far as the windows reach."""
    before = (WINDOW - ANSWER) // 2
    after = [corners(length)[-1] + WINDOW - before - length for length in image.shape[:2]]
    return np.pad(image, ((before, after[0]), (before, after[1]), (0, 0)), "reflect")


@torch.no_grad()
def network_maps(net: HoVerNet, image: Array, batch_size: int, most: int | None = None) -> tuple[Array, int, int]:
    """float32 (H, W, 3), probability, h, v; and how many windows were computed, and of how many.

    most: stop after so many windows, to estimate the time of all (the rest of the maps stays 0).
    """
    height, width = image.shape[:2]
    large = padded(image)
    places = [(row, column) for row in corners(height) for column in corners(width)]
    maps = np.zeros((len(corners(height)) * ANSWER, len(corners(width)) * ANSWER, 3), np.float32)
    todo = places[:most]
    for begin in range(0, len(todo), batch_size):
        batch = todo[begin : begin + batch_size]
        windows = np.stack([large[row : row + WINDOW, column : column + WINDOW] for row, column in batch])
        answer = net(torch.from_numpy(windows).float().permute(0, 3, 1, 2).contiguous())
        prob = answer.np.permute(0, 2, 3, 1).softmax(-1)[..., 1:]
        for (row, column), part in zip(
            batch, torch.cat([prob, answer.hv.permute(0, 2, 3, 1)], -1).numpy(), strict=True
        ):
            maps[row : row + ANSWER, column : column + ANSWER] = part
    return maps[:height, :width], len(todo), len(places)


def instances(maps: Array) -> Array:
    """int32 (H, W): every step over the whole tile. maps: float32 (H, W, 3), probability, h, v."""
    mask = _without_small(ndimage.label(maps[..., 0] >= 0.5)[0]) > 0
    mask = mask.astype(np.int32)
    h_map, v_map = (_unit(maps[..., channel]) for channel in (1, 2))
    across = 1 - _unit(cv2.Sobel(h_map, cv2.CV_64F, 1, 0, ksize=21))
    down = 1 - _unit(cv2.Sobel(v_map, cv2.CV_64F, 0, 1, ksize=21))
    edges = np.maximum(across, down) - (1 - mask)
    edges[edges < 0] = 0
    heights = -cv2.GaussianBlur((1.0 - edges) * mask, (3, 3), 0)
    markers = mask - (edges >= 0.4).astype(np.int32)
    markers[markers < 0] = 0
    markers = ndimage.binary_fill_holes(markers).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    markers = ndimage.label(cv2.morphologyEx(markers, cv2.MORPH_OPEN, disc))[0]
    grown: Array = watershed(heights, markers=_without_small(markers), mask=mask)
    return grown


def _unit(values: Array) -> Array:
    return cv2.normalize(values, None, alpha=0, beta=1, norm_type=cv2.NORM_MINMAX, dtype=cv2.CV_32F)  # type: ignore


def _without_small(numbers: Array) -> Array:
    """What the reference's remove_small_objects does: regions under 10 px become background."""
    areas = np.bincount(numbers.ravel())
    numbers[(areas < 10)[numbers]] = 0
    return numbers


def describe(inst_map: Array) -> dict[int, dict[str, Any]]:
    """inst_id -> box, centroid and contour; each nucleus is looked for on the whole tile, as there."""
    found = {}
    for inst_id in np.unique(inst_map)[1:]:
        mask = inst_map == inst_id
        rows, columns = np.where(mask.any(axis=1))[0], np.where(mask.any(axis=0))[0]
        box = np.array([[rows[0], columns[0]], [rows[-1] + 1, columns[-1] + 1]])
        part = mask[box[0, 0] : box[1, 0], box[0, 1] : box[1, 1]].astype(np.uint8)
        moments = cv2.moments(part)
        contour = np.squeeze(cv2.findContours(part, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0][0].astype(np.int32))
        if contour.ndim != 2 or contour.shape[0] < 3:
            continue
        centroid = np.array([moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]]) + box[0, ::-1]
        found[int(inst_id)] = {"bbox": box, "centroid": centroid, "contour": contour + box[0, ::-1]}
    return found
