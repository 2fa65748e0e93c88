"""Pictures of a run: one row a tile with image, evidence, pseudo mask and what the teacher segments."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from dataloader.images import write_png
from hovernet_cyclic.core.types import (
    ActivationMap,
    BoolArray,
    Float32Array,
    ImageTile,
    Int32Array,
    PseudoMask,
    Segmenter,
    UInt8Array,
)
from models.hovernet.post_proc import segment

MOST_ROWS = 6
CROP = 320  # px of a tile's middle that is shown
OUTLINE = (40, 230, 60)
GAP = 6
CAPTION, LONGEST_CAPTION = 16, 48  # px, height of a line of text; letters
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.38


def write_gallery(
    path: Path,
    tiles: Iterable[ImageTile],
    activations: list[ActivationMap],
    masks: list[PseudoMask],
    segmenter: Segmenter,
    smallest: int,
) -> None:
    """Write the sheet of one cycle as PNG: at most MOST_ROWS tiles, evenly spread over all.

    smallest: px, of what is segmented.
    """
    shown = set(np.linspace(0, len(masks) - 1, min(MOST_ROWS, len(masks))).round().astype(int).tolist())
    rows = []
    for i, (tile, activation, mask) in enumerate(zip(tiles, activations, masks, strict=True)):
        if i not in shown:
            continue
        image, window = middle(tile.image)
        segmented = segment(segmenter.raw_maps(image), smallest=smallest)
        pseudo = shade(outline(image, mask.inst_map[window]), ~mask.trusted[window])
        rows.append([image, heat(activation.evidence[0][window]), pseudo, outline(image, segmented)])
    write_png(path, sheet(rows))


def middle(image: UInt8Array) -> tuple[UInt8Array, tuple[slice, slice]]:
    """uint8 (H, W, 3) -> its middle of at most CROP px a side, and where that lies."""
    starts = [max(0, (size - CROP) // 2) for size in image.shape[:2]]
    window = slice(starts[0], starts[0] + CROP), slice(starts[1], starts[1] + CROP)
    return np.ascontiguousarray(image[window]), window


def outline(image: UInt8Array, inst_map: Int32Array) -> UInt8Array:
    """uint8 (H, W, 3) with the border of each instance of int32 (H, W) drawn on it."""
    drawn = image.copy()
    eroded = cv2.erode(inst_map.astype(np.float32), np.ones((3, 3), np.uint8))
    dilated = cv2.dilate(inst_map.astype(np.float32), np.ones((3, 3), np.uint8))
    drawn[(inst_map > 0) & ((eroded != inst_map) | (dilated != inst_map))] = OUTLINE
    return drawn


def shade(image: UInt8Array, hidden: BoolArray) -> UInt8Array:
    """uint8 (H, W, 3), greyed where bool (H, W) is True: what is not taught."""
    drawn = image.copy()
    drawn[hidden] = (0.45 * drawn[hidden] + 0.55 * 128).astype(np.uint8)
    return drawn


def heat(evidence: Float32Array) -> UInt8Array:
    """float32 (H, W) logits -> uint8 (H, W, 3): probability 0 black to 1 white, the same scale for every tile."""
    probability = 1 / (1 + np.exp(-evidence))
    coloured = cv2.applyColorMap((255 * probability).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def captioned(picture: UInt8Array, text: str) -> UInt8Array:
    """uint8 (H, W, 3) with a line of text below it, white beside it where the line is longer than the picture.

    Letters beyond ASCII are shown as '?', and what is longer than LONGEST_CAPTION letters is cut.
    """
    plain = text.encode("ascii", "replace").decode()[:LONGEST_CAPTION]
    (length, _), _ = cv2.getTextSize(plain, _FONT, _SCALE, 1)
    height, width, _ = picture.shape
    page = np.full((height + CAPTION, max(width, length + 4), 3), 255, np.uint8)
    page[:height, :width] = picture
    cv2.putText(page, plain, (1, height + CAPTION - 5), _FONT, _SCALE, (60, 60, 60), 1, cv2.LINE_AA)
    return page


def sheet(rows: list[list[UInt8Array]]) -> UInt8Array:
    """Pictures of any size in rows -> one uint8 (H, W, 3), white between them; a row is as high as its pictures."""
    heights = [max(picture.shape[0] for picture in row) + GAP for row in rows]
    width = max(sum(picture.shape[1] + GAP for picture in row) for row in rows)
    page = np.full((sum(heights), width, 3), 255, np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            left += picture.shape[1] + GAP
        top += height
    return page
