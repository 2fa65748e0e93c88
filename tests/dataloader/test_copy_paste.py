"""Copy-paste: what is pasted is exact, and nothing that was there is lost unsaid."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.augs import LabelledTile
from dataloader.copy_paste import MARGIN, MOST_HIDDEN, Cutout, cut_out, paste


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
    inst_map[0:5, 10:17] = 3  # 1 and 2 are not there
    (cutout,) = cut_out(one.image, inst_map, [1, 3, 7])
    assert cutout.mask.shape == (5 + MARGIN, 7 + 2 * MARGIN) and cutout.mask.sum() == 35
    np.testing.assert_array_equal(cutout.image, one.image[0 : 5 + MARGIN, 10 - MARGIN : 17 + MARGIN])
    cutout.image[:] = 0
    assert one.image[0, 10].any(), "the tile's own pixels are not the cutout's"


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
