"""An image seen from several sides: the mean of what a segmenter says of it turned and mirrored."""

from __future__ import annotations

from typing import Any

import numpy as np

from dataloader.augs import apply_turn
from hovernet_cyclic.core.types import Float32Array, RawMaps, Segmenter, UInt8Array

Turn = tuple[int, bool]  # quarter turns against the clock, and whether it is mirrored afterwards
# The first four hold each quarter turn once, and as many mirrored as not.
TURNS: tuple[Turn, ...] = (
    (0, False),
    (1, False),
    (2, True),
    (3, True),
    (2, False),
    (3, False),
    (0, True),
    (1, True),
)


class MeanOfViews:
    """A Segmenter that asks another one `views` times (1 to 8), each time with the image turned, and takes the mean.

    Nuclei look alike from all sides; what changes with the side is the network's own error. Types are the first view's.
    """

    def __init__(self, segmenter: Segmenter, views: int) -> None:
        self._segmenter, self._turns = segmenter, TURNS[:views]

    def raw_maps(self, image: UInt8Array) -> RawMaps:
        """uint8 (H, W, 3) RGB -> RawMaps of the same (H, W)."""
        seen = [turned_back(self._segmenter.raw_maps(apply_turn(image, turn)), turn) for turn in self._turns]
        if len(seen) == 1:
            return seen[0]
        np_prob, hv_map = (_mean([getattr(maps, name) for maps in seen]) for name in ("np_prob", "hv_map"))
        return RawMaps(np_prob, hv_map, seen[0].type_map, seen[0].type_probs)


def turned_back(maps: RawMaps, turn: Turn) -> RawMaps:
    """Maps of an image after `apply_turn(image, turn)` -> those of the image, directions of the hv maps too."""
    quarters, mirrored = turn
    hv_map = _untwist(maps.hv_map, turn)
    across, down = hv_map[..., 0], hv_map[..., 1]
    if mirrored:
        across = -across
    for _ in range(quarters):  # a quarter against the clock takes what points right to what points up
        across, down = -down, across
    return RawMaps(
        _untwist(maps.np_prob, turn),
        np.stack([across, down], axis=-1),
        None if maps.type_map is None else _untwist(maps.type_map, turn),
        None if maps.type_probs is None else _untwist(maps.type_probs, turn),
    )


def _untwist(array: Any, turn: Turn) -> Any:
    quarters, mirrored = turn
    return np.ascontiguousarray(np.rot90(array[:, ::-1] if mirrored else array, -quarters))


def _mean(maps: list[Float32Array]) -> Float32Array:
    return np.asarray(np.mean(maps, axis=0), np.float32)
