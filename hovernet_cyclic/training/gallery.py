"""Pictures of a run: one row a tile with image, evidence, pseudo mask and what the teacher segments."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from dataloader.images import write_png
from hovernet_cyclic.core.metrics import MATCH_IOU, overlap_table
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
OUTLINE, MISSED, FALSE = (40, 230, 60), (30, 90, 255), (255, 40, 30)
GAP = 6
CAPTION, LONGEST_CAPTION = 16, 48  # px, height of a line of text; letters
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.38


class Gallery(NamedTuple):
    """page: uint8 (H, W, 3). rows: the 'tile_id' of each, and 'boxes' (top, left, bottom, right), px, of its pictures.

    These are image, evidence, pseudo mask and what the teacher segments.
    """

    page: UInt8Array
    rows: list[dict[str, Any]]


def write_gallery(
    path: Path,
    tiles: Iterable[ImageTile],
    activations: list[ActivationMap],
    masks: list[PseudoMask],
    segmenter: Segmenter,
    smallest: int,
) -> Gallery:
    """Write the sheet of one cycle as PNG: at most MOST_ROWS tiles, evenly spread over all.

    smallest: px, of what is segmented.
    """
    shown = set(np.linspace(0, len(masks) - 1, min(MOST_ROWS, len(masks))).round().astype(int).tolist())
    rows, names = [], []
    for i, (tile, activation, mask) in enumerate(zip(tiles, activations, masks, strict=True)):
        if i not in shown:
            continue
        image, window = middle(tile.image)
        segmented = segment(segmenter.raw_maps(image), smallest=smallest)
        pseudo = shade(outline(image, mask.inst_map[window]), ~mask.trusted[window])
        rows.append([image, heat(activation.evidence[0][window]), pseudo, outline(image, segmented)])
        names.append(tile.tile_id)
    page = sheet(rows)
    write_png(path, page)
    return Gallery(page, [{"tile_id": name, "boxes": row} for name, row in zip(names, boxes(rows), strict=True)])


def middle(image: UInt8Array) -> tuple[UInt8Array, tuple[slice, slice]]:
    """uint8 (H, W, 3) -> its middle of at most CROP px a side, and where that lies."""
    starts = [max(0, (size - CROP) // 2) for size in image.shape[:2]]
    window = slice(starts[0], starts[0] + CROP), slice(starts[1], starts[1] + CROP)
    return np.ascontiguousarray(image[window]), window


def outline(image: UInt8Array, inst_map: Int32Array, colour: tuple[int, int, int] = OUTLINE) -> UInt8Array:
    """uint8 (H, W, 3) with the border of each instance of int32 (H, W) drawn on it. colour: RGB."""
    drawn = image.copy()
    eroded = cv2.erode(inst_map.astype(np.float32), np.ones((3, 3), np.uint8))
    dilated = cv2.dilate(inst_map.astype(np.float32), np.ones((3, 3), np.uint8))
    drawn[(inst_map > 0) & ((eroded != inst_map) | (dilated != inst_map))] = colour
    return drawn


def compared(image: UInt8Array, drawn: Int32Array, found: Int32Array) -> list[UInt8Array]:
    """The middle of a tile, with its drawn nuclei outlined, and with the ones that were found.

    drawn, found: int32 (H, W). Those that match (IoU above MATCH_IOU) are outlined in OUTLINE, drawn ones that were
    missed in MISSED, and found ones that are not drawn in FALSE. Nuclei are matched on the whole tile.
    """
    plain, window = middle(image)
    table = overlap_table(drawn, found)
    matched = table.pair_iou > MATCH_IOU
    pairs = (
        (drawn, table.true_ids[table.pair_true[matched]], MISSED),
        (found, table.pred_ids[table.pair_pred[matched]], FALSE),
    )
    pictures = [plain]
    for inst_map, met, colour in pairs:
        shown, hit = inst_map[window], np.isin(inst_map[window], met)
        apart = outline(plain, np.where(hit, 0, shown), colour)
        pictures.append(outline(apart, np.where(hit, shown, 0)))
    return pictures


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
    places = boxes(rows)
    height, width = (max(box[side] for row in places for box in row) + GAP for side in (2, 3))
    page = np.full((height, width, 3), 255, np.uint8)
    for row, there in zip(rows, places, strict=True):
        for picture, (top, left, bottom, right) in zip(row, there, strict=True):
            page[top:bottom, left:right] = picture
    return page


def boxes(rows: list[list[UInt8Array]]) -> list[list[tuple[int, int, int, int]]]:
    """Where `sheet` puts each picture: (top, left, bottom, right), px, half-open."""
    places, top = [], 0
    for row in rows:
        lefts = np.cumsum([0, *(picture.shape[1] + GAP for picture in row)]).tolist()
        sizes = [picture.shape[:2] for picture in row]
        places.append([(top, left, top + h, left + w) for left, (h, w) in zip(lefts, sizes, strict=False)])
        top += max(height for height, _ in sizes) + GAP
    return places
