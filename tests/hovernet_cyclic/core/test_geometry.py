import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hovernet_cyclic.core.errors import DatasetError, RecipeError
from hovernet_cyclic.core.geometry import (
    contains_point,
    grow,
    intersect,
    overlap,
    patch_lattice,
    scale,
    shift,
    slide_tiles,
    within,
)
from hovernet_cyclic.core.types import Box

SIDE = st.integers(1, 60)
SHAPE = st.tuples(SIDE, SIDE)


@st.composite
def boxes(draw, low=-30, high=30):
    top, left = draw(st.integers(low, high)), draw(st.integers(low, high))
    return Box(top, left, top + draw(st.integers(1, 30)), left + draw(st.integers(1, 30)))


@st.composite
def patch_shapes(draw):
    out = (draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    return (out[0] + draw(st.integers(0, 15)), out[1] + draw(st.integers(0, 15))), out


def pixels(box):
    return {(row, column) for row in range(box.top, box.bottom) for column in range(box.left, box.right)}


@settings(max_examples=60, deadline=None)
@given(SHAPE, patch_shapes())
def test_patch_outputs_cover_every_pixel_once(tile_shape, shapes):
    lattice = patch_lattice(tile_shape, *shapes)
    covered = np.zeros(tile_shape, int)
    for index in range(len(lattice.corners)):
        box = lattice.output_box(index)
        assert box.height >= 1 and box.width >= 1
        covered[box.top : box.bottom, box.left : box.right] += 1
    assert (covered == 1).all()
    assert lattice.grid_shape[0] * lattice.grid_shape[1] == len(lattice.corners)


@settings(max_examples=60, deadline=None)
@given(SHAPE, patch_shapes())
def test_centre_of_each_input_is_the_tile_under_its_output(tile_shape, shapes):
    """A network that returns its centre gives back the tile: padding, corners and crop agree."""
    (in_h, in_w), (out_h, out_w) = shapes
    tile = np.arange(tile_shape[0] * tile_shape[1]).reshape(tile_shape)
    lattice = patch_lattice(tile_shape, *shapes)
    top, bottom, left, right = lattice.padding
    padded = np.pad(tile, ((top, bottom), (left, right)), "reflect")
    assert padded.shape == lattice.padded_shape
    stitched = np.full(tile_shape, -1)
    for index in range(len(lattice.corners)):
        read, write = lattice.input_box(index), lattice.output_box(index)
        patch = padded[read.top : read.bottom, read.left : read.right]
        assert patch.shape == (in_h, in_w)
        centre = patch[(in_h - out_h) // 2 :, (in_w - out_w) // 2 :][: write.height, : write.width]
        stitched[write.top : write.bottom, write.left : write.right] = centre
    np.testing.assert_array_equal(stitched, tile)


def test_hovernet_fast_lattice_by_hand():
    lattice = patch_lattice((1000, 164), (256, 256), (164, 164))
    assert lattice.grid_shape == (7, 1)  # 6 x 164 = 984 < 1000
    assert lattice.padding == (46, 7 * 164 + 92 - 46 - 1000, 46, 46)
    assert lattice.corners[-1] == (984, 0)
    assert lattice.output_box(6) == Box(984, 0, 1000, 164)


@pytest.mark.parametrize("shapes", [((0, 5), (9, 9), (3, 3))])
def test_empty_tile_is_refused(shapes):
    with pytest.raises(DatasetError, match="0 x 5"):
        patch_lattice(*shapes)


@pytest.mark.parametrize("shapes", [((9, 9), (3, 3), (5, 3)), ((9, 9), (3, 3), (0, 3))])
def test_impossible_patches_are_refused(shapes):
    with pytest.raises(RecipeError, match="patch shapes"):
        patch_lattice(*shapes)


@st.composite
def grids(draw):
    """(slide_shape, window, margin) that can be laid."""
    margin = draw(st.integers(0, 8))
    return draw(SHAPE), (draw(st.integers(2 * margin + 1, 40)), draw(st.integers(2 * margin + 1, 40))), margin


@settings(max_examples=60, deadline=None)
@given(grids())
def test_windows_and_own_boxes_partition_the_slide(grid):
    slide_shape, window, margin = grid
    covered = np.zeros((2, *slide_shape), int)
    for read, own, box in slide_tiles(slide_shape, window, margin):
        for layer, part in zip(covered, (own, box), strict=True):
            layer[part.top : part.bottom, part.left : part.right] += 1
        grown = Box(own.top - margin, own.left - margin, own.bottom + margin, own.right + margin)
        assert read == intersect(grown, Box(0, 0, *slide_shape))
        assert box.height <= window[0] and box.width <= window[1]
    assert (covered == 1).all()


@settings(max_examples=60, deadline=None)
@given(grids())
def test_what_a_tile_reads_is_in_its_own_window_and_the_strips_before_it(grid):
    slide_shape, window, margin = grid
    for read, _, box in slide_tiles(slide_shape, window, margin):
        assert (read.bottom, read.right) == (box.bottom, box.right)
        assert read.top >= box.top - 2 * margin and read.left >= box.left - 2 * margin


@settings(max_examples=60, deadline=None)
@given(grids(), st.data())
def test_a_centroid_has_one_owner(grid, data):
    slide_shape, window, margin = grid
    x = data.draw(st.floats(0, slide_shape[1] - 1))
    y = data.draw(st.floats(0, slide_shape[0] - 1))
    assert sum(contains_point(tile.own, (x, y)) for tile in slide_tiles(slide_shape, window, margin)) == 1


def test_slide_tiles_refuse_bad_sizes():
    for window, margin in (((0, 4), 0), ((8, 8), -1), ((8, 8), 5)):
        with pytest.raises(RecipeError, match="margin"):
            slide_tiles((10, 10), window, margin)
    assert slide_tiles((0, 10), (4, 4), 1) == []
    assert len(slide_tiles((10, 10), (10, 10), 9)) == 1, "one window needs no room for a margin"


@given(boxes(), boxes())
def test_within_cuts_the_common_part(first, second):
    common = intersect(first, second)
    assert overlap(first, second) == (common is not None)
    if common:
        rows, columns = np.mgrid[first.top : first.bottom, first.left : first.right]
        cut = within(common, first)
        assert {*zip(rows[cut].ravel().tolist(), columns[cut].ravel().tolist(), strict=True)} == pixels(common)


@given(boxes(), boxes())
def test_intersect_is_the_set_of_common_pixels(first, second):
    common = intersect(first, second)
    assert (pixels(common) if common else set()) == pixels(first) & pixels(second)


@given(boxes(), st.integers(-9, 9), st.integers(-9, 9))
def test_shift_moves_every_pixel(box, rows, columns):
    assert pixels(shift(box, rows, columns)) == {(row + rows, column + columns) for row, column in pixels(box)}


def test_grow_stays_inside():
    assert grow(Box(2, 3, 5, 6), 4, within=Box(0, 0, 8, 20)) == Box(0, 0, 8, 10)


@given(boxes(0, 500), st.sampled_from([0.1, 0.2425, 0.25, 0.5, 1.0, 4.0]), st.sampled_from([0.25, 0.5, 1.0]))
def test_scale_is_within_half_a_pixel(box, from_mpp, to_mpp):
    scaled = scale(box, from_mpp, to_mpp)
    assert all(abs(b - a * from_mpp / to_mpp) <= 0.5 + 1e-9 for a, b in zip(box, scaled, strict=True))
    assert scale(box, from_mpp, from_mpp) == box


@settings(max_examples=40, deadline=None)
@given(SHAPE, st.integers(1, 30), st.sampled_from([0.13, 0.5, 0.77, 2.0]))
def test_a_partition_stays_one_when_scaled(slide_shape, own_size, from_mpp):
    scaled = [scale(tile.own, from_mpp, 0.25) for tile in slide_tiles(slide_shape, (own_size, own_size), 0)]
    whole = scale(Box(0, 0, *slide_shape), from_mpp, 0.25)
    covered = np.zeros((whole.height, whole.width), int)
    for box in scaled:
        covered[box.top : box.bottom, box.left : box.right] += 1
    assert (covered == 1).all()


def test_scale_refuses_an_unknown_mpp():
    for from_mpp, to_mpp in ((0.0, 0.25), (0.25, float("nan"))):
        with pytest.raises(RecipeError, match="mpp above 0"):
            scale(Box(0, 0, 1, 1), from_mpp, to_mpp)
