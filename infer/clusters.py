"""Which nuclei of a cut-out are what they would be on the whole slide.

Post-processing 'local' decides a nucleus by its cluster: the connected region of nucleus pixels, its small holes
filled, and a few pixels round it. Where a cluster lies whole inside the cut-out, its nuclei are those of the slide;
where the cut-out's edge may cut it, it is open, and its nuclei are to be asked of a cut-out that holds all of it.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from hovernet_cyclic.core.types import BoolArray, Box, Float32Array, Int32Array
from models.hovernet.post_proc import LOCAL_KSIZE, LOCAL_LARGEST_HOLE, NUCLEUS_PROB

# px round a cluster that its nuclei depend on: half the derivative's kernel, and what smoothing and opening look at.
REACH = LOCAL_KSIZE // 2 + 3


class Clusters(NamedTuple):
    """numbers: int32 (H, W), 0 background. By number: boxes, px of the cut-out, and is_open. [0] is of no meaning."""

    numbers: Int32Array
    boxes: list[Box]
    is_open: BoolArray


def find_clusters(np_prob: Float32Array, box: Box, whole: tuple[int, int]) -> Clusters:
    """The clusters of a cut-out. np_prob: float32 (H, W). box: of the cut-out in px of the whole, which is (H, W) px.

    Enclosed background is filled also where the cut-out's edge encloses it, as it may be a hole: no two clusters are
    told apart that the whole slide would join.
    """
    nuclei = np.asarray(np_prob >= NUCLEUS_PROB)
    _, outside, stats, _ = cv2.connectedComponentsWithStats((~nuclei).astype(np.uint8), connectivity=4)
    is_hole = stats[:, cv2.CC_STAT_AREA] <= LOCAL_LARGEST_HOLE
    is_hole[0] = True  # the nuclei
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(is_hole[outside].astype(np.uint8), connectivity=4)
    boxes = [Box(y, x, y + h, x + w) for x, y, w, h, _ in stats.tolist()]
    edge = _closed_part(box, whole)
    is_open = np.array([not _inside(cluster, edge) for cluster in boxes], np.bool_)
    is_open[0] = False
    return Clusters(np.asarray(numbers, np.int32), boxes, is_open[:count])


def _closed_part(box: Box, whole: tuple[int, int]) -> Box:
    """The cut-out less REACH px at the sides where the slide goes on, px of the cut-out."""
    return Box(
        REACH if box.top > 0 else 0,
        REACH if box.left > 0 else 0,
        box.height - (REACH if box.bottom < whole[0] else 0),
        box.width - (REACH if box.right < whole[1] else 0),
    )


def _inside(inner: Box, outer: Box) -> bool:
    return (
        inner.top >= outer.top
        and inner.left >= outer.left
        and inner.bottom <= outer.bottom
        and inner.right <= outer.right
    )


def first_pixel(clusters: Clusters, number: int, np_prob: Float32Array) -> tuple[int, int]:
    """(row, column) in the cut-out of the first nucleus pixel of a cluster, in reading order."""
    box = clusters.boxes[number]
    part = (slice(box.top, box.bottom), slice(box.left, box.right))
    rows, columns = np.nonzero((clusters.numbers[part] == number) & (np_prob[part] >= NUCLEUS_PROB))
    return (int(rows[0]) + box.top, int(columns[0]) + box.left) if rows.size else (box.top, box.left)
