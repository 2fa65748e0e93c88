"""Where patches and slide tiles lie, and what can be done with a box. Pure functions on integers.

Shapes are (height, width), positions (row, column), points (x, y); boxes are half-open, in pixels at a stated mpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hovernet_cyclic.core.errors import DatasetError, RecipeError
from hovernet_cyclic.core.types import Box, SlideTile

Shape = tuple[int, int]


@dataclass(frozen=True)
class PatchLattice:
    """Where the patches of one tile lie.

    tile_shape: (H, W). patch_input_shape, patch_output_shape: (h, w). padding: (top, bottom, left, right) px to add by
    reflection round the tile. grid_shape: number of patches (down, across). corners: (row, column) of each patch
    input's top-left corner in the padded tile, row by row. As the padding at the top and left is the network's own
    border, the same numbers are the top-left corner of the patch's *output* in the unpadded tile.
    """

    tile_shape: Shape
    patch_input_shape: Shape
    patch_output_shape: Shape
    padding: tuple[int, int, int, int]
    grid_shape: Shape
    corners: tuple[tuple[int, int], ...]

    @property
    def padded_shape(self) -> Shape:
        """(H, W) of the tile with its padding, px."""
        top, bottom, left, right = self.padding
        return self.tile_shape[0] + top + bottom, self.tile_shape[1] + left + right

    def input_box(self, index: int) -> Box:
        """What patch `index` reads, in pixels of the padded tile."""
        row, column = self.corners[index]
        return Box(row, column, row + self.patch_input_shape[0], column + self.patch_input_shape[1])

    def output_box(self, index: int) -> Box:
        """What patch `index` answers for, in pixels of the unpadded tile, clipped to it: never empty."""
        row, column = self.corners[index]
        height, width = self.patch_output_shape
        return Box(row, column, min(row + height, self.tile_shape[0]), min(column + width, self.tile_shape[1]))


def patch_lattice(tile_shape: Shape, patch_input_shape: Shape, patch_output_shape: Shape) -> PatchLattice:
    """Lay the fewest patches whose outputs, clipped to the tile, cover each of its pixels exactly once.

    tile_shape: (H, W) px, both >= 1. The output is centred in the input; where the two differ by an odd number the
    shorter border is at the top and left. Raises DatasetError for an empty tile and RecipeError for patch shapes that
    cannot work.
    """
    _check_shapes(tile_shape, patch_input_shape, patch_output_shape)
    rows, before_row, after_row = _axis_lattice(tile_shape[0], patch_input_shape[0], patch_output_shape[0])
    columns, before_column, after_column = _axis_lattice(tile_shape[1], patch_input_shape[1], patch_output_shape[1])
    return PatchLattice(
        tile_shape=(int(tile_shape[0]), int(tile_shape[1])),
        patch_input_shape=patch_input_shape,
        patch_output_shape=patch_output_shape,
        padding=(before_row, after_row, before_column, after_column),
        grid_shape=(len(rows), len(columns)),
        corners=tuple((row, column) for row in rows for column in columns),
    )


def slide_tiles(slide_shape: Shape, window: Shape, margin: int) -> list[SlideTile]:
    """Cut a slide into windows for the network, and into tiles for post-processing that lag behind them.

    slide_shape, window: (H, W) px at the working mpp. Row by row: the `window` boxes partition the slide, and so do the
    `own` boxes, which lie `margin` px further up and left. A `read` box is its own box grown by `margin` and clipped to
    the slide; so it ends where its window does, and with the windows of the tiles above and to the left all of it is
    there. Raises RecipeError for sizes that cannot work; an empty slide has no tiles.
    """
    slide = Box(0, 0, *slide_shape)
    tiles = []
    for top, own_top, own_bottom in _lagging(slide_shape[0], window[0], margin):
        for left, own_left, own_right in _lagging(slide_shape[1], window[1], margin):
            own = Box(own_top, own_left, own_bottom, own_right)
            box = Box(top, left, min(top + window[0], slide.bottom), min(left + window[1], slide.right))
            tiles.append(SlideTile(read=grow(own, margin, within=slide), own=own, window=box))
    return tiles


def _lagging(length: int, window: int, margin: int) -> list[tuple[int, int, int]]:
    """(start of the window, start and end of the own box) along one axis."""
    if window < 1 or margin < 0 or (window < length and 2 * margin > window):
        raise RecipeError(
            f"Slide tiles of {window} px with a margin of {margin} px: give a size >= 1 of at least twice the margin."
        )
    starts = range(0, length, window)
    edges = [0, *(start - margin for start in starts[1:]), length]
    return [(start, edges[i], edges[i + 1]) for i, start in enumerate(starts)]


def intersect(first: Box, second: Box) -> Box | None:
    """The pixels in both boxes (of one mpp), or None where there are none."""
    common = Box(
        max(first.top, second.top),
        max(first.left, second.left),
        min(first.bottom, second.bottom),
        min(first.right, second.right),
    )
    return common if common.top < common.bottom and common.left < common.right else None


def shift(box: Box, rows: int, columns: int) -> Box:
    """The box moved down by `rows` px and right by `columns` px."""
    return Box(box.top + rows, box.left + columns, box.bottom + rows, box.right + columns)


def grow(box: Box, margin: int, within: Box) -> Box:
    """The box with `margin` px more on every side, clipped to `within`, which holds the box."""
    return Box(
        max(box.top - margin, within.top),
        max(box.left - margin, within.left),
        min(box.bottom + margin, within.bottom),
        min(box.right + margin, within.right),
    )


def scale(box: Box, from_mpp: float, to_mpp: float) -> Box:
    """The box, given in px at `from_mpp` um/px, in px at `to_mpp`.

    Each edge goes to the nearest pixel edge (halves up), so boxes that share an edge still share it: a partition stays
    one. Raises RecipeError for an mpp that is not above 0.
    """
    if not (from_mpp > 0 and to_mpp > 0):
        raise RecipeError(f"Cannot scale from {from_mpp} to {to_mpp} um/px: give an mpp above 0.")
    return Box(*(math.floor(edge * from_mpp / to_mpp + 0.5) for edge in box))


def overlap(first: Box, second: Box) -> bool:
    """Whether two boxes share a pixel."""
    return intersect(first, second) is not None


def within(box: Box, outer: Box) -> tuple[slice, slice]:
    """The slices (rows, columns) that cut a box out of an array which covers `outer`."""
    return (
        slice(box.top - outer.top, box.bottom - outer.top),
        slice(box.left - outer.left, box.right - outer.left),
    )


def contains_point(box: Box, point: tuple[float, float]) -> bool:
    """Whether a point (x, y) lies in the half-open box: of boxes that partition a slide, just one says yes."""
    x, y = point
    return box.top <= y < box.bottom and box.left <= x < box.right


def _axis_lattice(length: int, patch_input: int, patch_output: int) -> tuple[range, int, int]:
    """Starts of the patches along one axis and the padding (before, after) that they need, px."""
    count = -(-int(length) // patch_output)
    before = (patch_input - patch_output) // 2
    after = (count - 1) * patch_output + patch_input - before - int(length)
    return range(0, count * patch_output, patch_output), before, after


def _check_shapes(tile_shape: Shape, patch_input_shape: Shape, patch_output_shape: Shape) -> None:
    if min(tile_shape) < 1:
        raise DatasetError(f"A tile of {tile_shape[0]} x {tile_shape[1]} px holds no pixel: remove this image.")
    fits = all(1 <= out <= into for out, into in zip(patch_output_shape, patch_input_shape, strict=True))
    if not fits:
        raise RecipeError(
            f"Patch output {patch_output_shape} must be at least 1 px and no larger than patch input "
            f"{patch_input_shape}: correct the network's patch shapes."
        )
