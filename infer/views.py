"""An image seen from several sides: the mean of what a segmenter says of it turned and mirrored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dataloader.augs import apply_turn
from dataloader.infer_loader import mirror
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.geometry import Shape
from hovernet_cyclic.core.settings import MOST_VIEWS
from hovernet_cyclic.core.types import Box, Pixels, RawMaps, SlideSegmenter, UInt8Array, whole_image
from infer.base import ALIGN

Turn = tuple[int, bool]  # quarter turns against the clock, and whether it is mirrored afterwards
# MOST_VIEWS of them, the image as it is first. The first four hold each quarter turn once, and as many mirrored as not.
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
    """A SlideSegmenter that asks another one `views` times (1 to 8), each time with the image turned: their mean.

    Nuclei look alike from all sides; what changes with the side is the network's own error. np_prob, hv_map and
    type_probs are means; the type is the one that is most probable by them. Raises RecipeError for other numbers.

    The answer at a pixel of a slide depends on the window that it is asked with no more than the network's own does:
    what is turned begins in steps of ALIGN px from a corner of the whole, which for this is taken up to the next
    multiple of ALIGN, mirrored at its true border.
    """

    def __init__(self, segmenter: SlideSegmenter, views: int) -> None:
        if not 1 <= views <= MOST_VIEWS:
            raise RecipeError(f"{views} views: give 1 to {MOST_VIEWS}.")
        self._segmenter, self._turns = segmenter, TURNS[:views]
        self.margin = segmenter.margin

    def cell(self, whole: Shape) -> Shape:
        """(h, w) px that one patch answers for in an image or slide of (H, W) px."""
        return self._segmenter.cell(whole)

    def raw_maps(self, image: UInt8Array) -> RawMaps:
        """uint8 (H, W, 3) RGB -> RawMaps of the same (H, W)."""
        return self.begin(whole_image(image))()

    def raw_maps_of(self, pixels: Pixels) -> RawMaps:
        """RawMaps of `pixels.wanted`. `pixels.box` should reach `margin` px further, or to the border of the whole."""
        return self.begin(pixels)()

    def begin(self, pixels: Pixels) -> Callable[[], RawMaps]:
        """As `raw_maps_of`, but a GPU may still be at work on the last view: call the answer, once, to wait for it.

        A view's maps are added to those before while the next is under way: two are held, and the sum.
        """
        if len(self._turns) == 1:
            return self._segmenter.begin(pixels)
        mean = _Mean((pixels.wanted.height, pixels.wanted.width))
        begun = self._segmenter.begin(pixels)
        whole_blocks = filled(pixels, self._segmenter.margin)
        for turn in self._turns[1:]:
            following = self._begin(whole_blocks, turn)
            mean.add(begun())
            begun = following  # and with it goes what was added

        def wait() -> RawMaps:
            mean.add(begun())
            return mean.maps()

        return wait

    def _begin(self, pixels: Pixels, turn: Turn) -> Callable[[], RawMaps]:
        wait = self._segmenter.begin(turned(pixels, turn))
        return lambda: turned_back(wait(), turn)


class _Mean:
    """Of maps of (H, W) px; what they hold beyond, at the bottom and right, is left out, and types without shares."""

    def __init__(self, shape: Shape) -> None:
        self._inside = np.s_[: shape[0], : shape[1]]
        self._count = 0
        self._sums: list[Any] = []

    def add(self, maps: RawMaps) -> None:
        """Count these in too."""
        given = [part for part in (maps.np_prob, maps.hv_map, maps.type_probs) if part is not None]
        if not self._sums:
            self._sums = [np.zeros(part[self._inside].shape, np.float32) for part in given]
        for total, part in zip(self._sums, given, strict=True):
            total += part[self._inside]
        self._count += 1

    def maps(self) -> RawMaps:
        """The mean of those that were added."""
        for total in self._sums:
            total /= np.float32(self._count)
        np_prob, hv_map, *rest = self._sums
        if not rest:
            return RawMaps(np_prob, hv_map)
        (probs,) = rest
        return RawMaps(np_prob, hv_map, probs.argmax(axis=-1).astype(np.uint8), probs.astype(np.float16))


def filled(pixels: Pixels, margin: int) -> Pixels:
    """The same part of a whole whose sides are taken up to multiples of ALIGN px, so that it can be turned.

    What is wanted grows, at the bottom and right, to multiples of ALIGN as well; who asks drops that, so no more px
    than `margin` need be known round it. margin: px that are mirrored where the true whole ends.
    """
    (height, width), box, wanted = pixels.whole, pixels.box, pixels.wanted
    below = _up(height) - height + margin if box.bottom == height else 0
    right = _up(width) - width + margin if box.right == width else 0
    return Pixels(
        mirror(pixels.image, (0, below, 0, right)),
        box._replace(bottom=box.bottom + below, right=box.right + right),
        (_up(height), _up(width)),
        wanted._replace(bottom=_up(wanted.bottom), right=_up(wanted.right)),
    )


def _up(length: int) -> int:
    return -(-length // ALIGN) * ALIGN


def turned(pixels: Pixels, turn: Turn) -> Pixels:
    """The same part of the whole after `apply_turn(whole, turn)`."""
    whole = pixels.whole[::-1] if turn[0] % 2 else pixels.whole
    box, wanted = (_turned(one, turn, pixels.whole) for one in (pixels.box, pixels.wanted))
    return Pixels(apply_turn(pixels.image, turn), box, whole, wanted)


def _turned(box: Box, turn: Turn, whole: Shape) -> Box:
    """Where a box of a whole of (H, W) px lies after `apply_turn(whole, turn)`."""
    height, width = whole
    for _ in range(turn[0]):
        box = Box(width - box.right, box.top, width - box.left, box.bottom)
        height, width = width, height
    return box._replace(left=width - box.right, right=width - box.left) if turn[1] else box


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
