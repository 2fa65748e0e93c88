"""Copy-paste: what is pasted is exact, and nothing that was there is lost unsaid."""

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dataloader.augs import LabelledTile
from dataloader.copy_paste import (
    MARGIN,
    MOST_HIDDEN,
    PALENESS,
    RIM,
    SIDES,
    SLENDER,
    Cutout,
    cut_out,
    paste,
    stretched,
    vesicular,
)


def tile(side=96, nuclei=4, seed=0, typed=False):
    """Discs of one colour each on white."""
    rng = np.random.default_rng(seed)
    image, inst_map = np.full((side, side, 3), 255, np.uint8), np.zeros((side, side), np.int32)
    rows, columns = np.indices(inst_map.shape)
    for inst_id in range(1, nuclei + 1):
        row, column = rng.uniform(10, side - 10, 2)
        disc = ((rows - row) ** 2 + (columns - column) ** 2 <= 36) & (inst_map == 0)
        inst_map[disc], image[disc] = inst_id, (20 * inst_id, 40, 90)
    types = np.where(inst_map > 0, 2, 0).astype(np.uint8) if typed else None
    return LabelledTile(image, inst_map, inst_map > 0, types)


def test_a_cutout_is_the_nucleus_with_its_margin_clipped_to_the_tile():
    one = tile()
    inst_map = np.zeros((96, 96), np.int32)
    inst_map[1:6, 10:17] = 3  # 1 and 2 are not there
    (cutout,) = cut_out(one.image, inst_map, [1, 3, 7])
    assert cutout.mask.shape == (5 + 1 + MARGIN, 7 + 2 * MARGIN) and cutout.mask.sum() == 35
    np.testing.assert_array_equal(cutout.image, one.image[0 : 6 + MARGIN, 10 - MARGIN : 17 + MARGIN])
    cutout.image[:] = 0
    assert one.image[1, 10].any(), "the tile's own pixels are not the cutout's"


def test_what_the_border_of_the_tile_may_have_cut_is_not_cut_out():
    inst_map = np.zeros((20, 20), np.int32)
    inst_map[0:5, 4:9], inst_map[8:12, 16:20], inst_map[15:19, 2:6] = 1, 2, 3
    assert [int(one.mask.sum()) for one in cut_out(np.zeros((20, 20, 3), np.uint8), inst_map, [1, 2, 3])] == [16]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.integers(0, 20), st.booleans())
def test_pasted_nuclei_are_whole_or_hidden_by_later_ones_and_the_tile_stays(seed, count, typed):
    before = tile(seed=seed, typed=typed)
    kept = [array.copy() for array in before[:3]]
    cutouts = cut_out(before.image, before.inst_map, range(1, 5))
    after = paste(before, cutouts, count, np.random.default_rng(seed))
    for array, copy in zip(before[:3], kept, strict=True):
        np.testing.assert_array_equal(array, copy)
    new = after.inst_map > 4
    assert after.trusted[new].all() and after.inst_map.max() <= 4 + count
    np.testing.assert_array_equal(after.inst_map[~new], before.inst_map[~new])
    np.testing.assert_array_equal(after.trusted[~new], before.trusted[~new])
    if typed:
        assert not after.type_map[new].any()
        np.testing.assert_array_equal(after.type_map[~new], before.type_map[~new])
    far = np.ones(new.shape, bool)
    rows, columns = np.nonzero(new)
    for row, column in zip(rows, columns, strict=True):
        far[max(0, row - 5) : row + 6, max(0, column - 5) : column + 6] = False
    np.testing.assert_array_equal(after.image[far], before.image[far])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16))
def test_one_pasted_nucleus_hides_no_more_than_it_may(seed):
    before = tile(seed=seed)
    after = paste(before, cut_out(before.image, before.inst_map, range(1, 5)), 1, np.random.default_rng(seed))
    had, has = (np.bincount(one.inst_map.ravel(), minlength=6) for one in (before, after))
    assert np.all(had[1:5] - has[1:5] <= MOST_HIDDEN * had[1:5])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 60))
def test_many_pasted_together_hide_no_more_than_one_may(seed, count):
    """Of the tile's nuclei: most of each stays in sight, whatever comes later."""
    before = tile(side=64, seed=seed)
    after = paste(before, cut_out(before.image, before.inst_map, range(1, 5)), count, np.random.default_rng(seed))
    had, has = (np.bincount(one.inst_map.ravel(), minlength=6) for one in (before, after))
    assert np.all(has[1:5] >= (1 - MOST_HIDDEN) * had[1:5])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16))
def test_a_stretched_nucleus_is_whole_and_keeps_its_colours(seed):
    rng = np.random.default_rng(seed)
    one = tile(nuclei=1, seed=seed)
    (cutout,) = cut_out(one.image, one.inst_map, [1])
    after = stretched(cutout, rng)
    assert after.image.shape[:2] == after.mask.shape
    grown = after.mask.sum() / cutout.mask.sum()
    assert 0.8 * (SIDES[0] * SLENDER[0]) ** 2 < grown < 1.2 * (SIDES[1] * SLENDER[1]) ** 2
    assert ndimage.label(after.mask)[1] == 1
    assert not after.mask[[0, -1]].any() and not after.mask[:, [0, -1]].any(), "a margin is left for the seam"
    inside = after.image[cv2.erode(after.mask.astype(np.uint8), np.ones((5, 5))) > 0]
    assert len(inside) and (inside == (20, 40, 90)).all()


def test_a_nucleus_is_turned_by_any_angle():
    mask = np.zeros((44, 44), bool)
    mask[5:38, 5:9] = True
    cutout = Cutout(np.zeros((44, 44, 3), np.uint8), mask)
    seen = []
    for seed in range(60):
        rows, columns = np.nonzero(stretched(cutout, np.random.default_rng(seed)).mask)
        centred = np.column_stack([columns, rows]) - (columns.mean(), rows.mean())
        _, axes = np.linalg.eigh(np.cov(centred.T))
        seen.append(np.degrees(np.arctan2(*axes[:, 1])) % 180)
    angles = np.array(seen)
    assert all(np.any((angles >= low) & (angles < low + 30)) for low in range(0, 180, 30))


def test_a_pale_inside_keeps_its_rim_and_takes_the_colour_around():
    rows, columns = np.indices((41, 41))
    mask = (rows - 20) ** 2 + (columns - 20) ** 2 <= 225
    image = np.full((41, 41, 3), (60, 30, 110), np.uint8)
    around = np.array([230.0, 180.0, 210.0])
    for seed in range(20):
        after = vesicular(Cutout(image, mask), around, np.random.default_rng(seed))
        depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
        np.testing.assert_array_equal(after.mask, mask)
        np.testing.assert_array_equal(after.image[depth < RIM[0]], image[depth < RIM[0]])
        middle, rest = after.image[20, 20].astype(float), image[20, 20].astype(float)
        shares = (middle - rest) / (around - rest)
        assert np.all(shares > 0.9 * PALENESS[0]) and np.all(after.image[20, 20] <= 255)


def test_the_smallest_nucleus_can_be_made_pale():
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    after = vesicular(Cutout(np.zeros((5, 5, 3), np.uint8), mask), np.full(3, 200.0), np.random.default_rng(0))
    assert after.image.shape == (5, 5, 3)


def test_pale_ones_are_as_many_as_asked_for():
    one = tile(side=300, nuclei=1)
    cutouts = cut_out(one.image, one.inst_map, [1])
    for share, least, most in ((0.0, 0, 0), (0.5, 20, 80), (1.0, 100, 100)):
        pale = drawn = 0
        for seed in range(100):
            after = paste(one, cutouts, 1, np.random.default_rng(seed), share)
            new = after.image[cv2.erode((after.inst_map == 2).astype(np.uint8), np.ones((5, 5))) > 0]
            drawn, pale = drawn + bool(len(new)), pale + bool(len(new) and (new.max(axis=0) > (40, 60, 110)).all())
        assert least <= 100 * pale / drawn <= most


def test_nothing_is_pasted_without_cutouts_or_where_none_fits():
    one = tile()
    assert paste(one, (), 5, np.random.default_rng(0)) is one
    huge = Cutout(np.zeros((200, 200, 3), np.uint8), np.ones((200, 200), bool))
    after = paste(one, [huge], 5, np.random.default_rng(0))
    np.testing.assert_array_equal(after.inst_map, one.inst_map)


def test_most_are_put_against_a_nucleus_that_is_there():
    """Two discs of radius 6 touch when their centres are 12 px apart: 70 % lie within 1.15 of that."""
    single = tile(side=400, nuclei=1)
    cutouts = cut_out(single.image, single.inst_map, [1])
    home = np.argwhere(single.inst_map == 1).mean(0)
    apart = []
    for seed in range(300):
        after = paste(single, cutouts, 1, np.random.default_rng(seed))
        places = np.argwhere(after.inst_map == 2)
        if len(places):
            apart.append(np.hypot(*(places.mean(0) - home)))
    near = np.mean(np.array(apart) < 1.2 * 12 + 2)
    assert 0.5 < near < 0.85


def test_the_same_seed_pastes_the_same():
    one = tile(seed=3)
    cutouts = cut_out(one.image, one.inst_map, range(1, 5))
    first, second = (paste(one, cutouts, 8, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.inst_map, second.inst_map)
