import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from models.hovernet.targets import hover_targets

GOLDEN = Path(os.environ.get("HOVERNET_CYCLIC_GOLDEN", Path(__file__).parents[4] / "shared" / "golden"))


def one_at_a_time(inst_map, shape, keep_border):
    """hv, nucleus by nucleus over the whole map: slow and plain."""
    top, left = ((have - want) // 2 for have, want in zip(inst_map.shape, shape, strict=True))
    hv_map = np.zeros((*inst_map.shape, 2), np.float32)
    for inst_id in np.unique(inst_map[inst_map > 0]):
        pieces, count = ndimage.label(inst_map == inst_id)
        for piece in range(1, count + 1):
            mask = pieces == piece
            if mask[top : top + shape[0], left : left + shape[1]].sum() < 30:
                continue
            rows, columns = np.nonzero(mask)
            if not keep_border and min(rows.min(), columns.min()) < 2:
                continue
            for channel, places in ((0, columns), (1, rows)):
                distance = (places + 1 - int(places.mean() + 0.5)).astype(np.float32)
                for side in (distance < 0, distance > 0):
                    if side.any():
                        distance[side] /= np.abs(distance[side]).max()
                hv_map[rows, columns, channel] = distance
    return hv_map[top : top + shape[0], left : left + shape[1]]


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference's numbers are not here")
@pytest.mark.parametrize("case", range(9))
def test_targets_equal_the_reference(case):
    with np.load(GOLDEN / "targets.npz") as golden:
        inst_map, hv_map, np_map = (golden[f"{name}_{case}"] for name in ("ann", "hv", "np"))
    targets = hover_targets(inst_map.astype(np.int32), np_map.shape)
    np.testing.assert_allclose(targets.hv_map, hv_map, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(targets.np_map, np_map)


def bands(rng, shape):
    """Regions of all shapes, many of them in several parts; few distinct ids."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), rng.choice([0.7, 1.5, 3.0]))
    return np.digitize(field, np.quantile(field, [0.4, 0.6, 0.8])) * 5


def ellipses(rng, shape, hollow, largest_id):
    """Ellipses from one pixel to half the map, over one another and over the border; ids with gaps, used twice."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    inst_map = np.zeros(shape, int)
    for _ in range(rng.integers(0, 20)):
        y, x, height, width = rng.uniform((0, 0, 0.5, 0.5), (*shape, 16, 16))
        distance = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2
        inst_map[(distance <= 1) & (distance > (0.5 if hollow else -1))] = rng.integers(1, largest_id)
    return inst_map


def lines(rng, shape):
    """Nuclei of one or two pixels' width, crossing."""
    inst_map = np.zeros(shape, int)
    for inst_id in range(1, rng.integers(2, 12)):
        row, column = rng.integers(0, shape)
        inst_map[row : row + rng.integers(1, 3), column : column + 40] = inst_id
    return inst_map


KINDS = {
    "bands": bands,
    "touching": lambda rng, shape: ellipses(rng, shape, False, 12),
    "rings": lambda rng, shape: ellipses(rng, shape, True, 12),
    "far ids": lambda rng, shape: ellipses(rng, shape, False, 30000),
    "lines": lines,
    "one pixel": lambda rng, shape: (np.arange(shape[0] * shape[1]) == rng.integers(shape[0])).reshape(shape) * 3,
    "full": lambda rng, shape: np.full(shape, 7),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    margin=st.tuples(st.integers(0, 21), st.integers(0, 21)),
    dtype=st.sampled_from([np.int32, np.int64, np.uint16, np.int16]),
    keep_border=st.booleans(),
)
def test_targets_equal_the_plain_way(kind, seed, shape, margin, dtype, keep_border):
    """Also for crops by an odd number of pixels, and ids of every type."""
    whole = shape[0] + margin[0], shape[1] + margin[1]
    inst_map = KINDS[kind](np.random.default_rng(seed), whole).astype(dtype)
    before = inst_map.copy()
    targets = hover_targets(inst_map, shape, keep_border=keep_border)
    np.testing.assert_allclose(targets.hv_map, one_at_a_time(inst_map, shape, keep_border), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(inst_map, before)
    top, left = margin[0] // 2, margin[1] // 2
    shown = inst_map[top : top + shape[0], left : left + shape[1]]
    np.testing.assert_array_equal(targets.np_map, shown > 0)
    assert np.abs(targets.hv_map).max(initial=0) <= 1


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("first", range(4))
def test_a_nucleus_at_the_first_two_rows_or_columns_has_no_hv_unless_asked_for(axis, first):
    """The authors grow each nucleus' box by 2 px: from row 1 on it would begin at row -1, which is the last one."""
    inst_map = np.zeros((60, 60), np.int32)
    inst_map[first:30, 20:40] = 1
    inst_map[first:30, 50:56] = 2
    inst_map[40:60, 20:40] = 3  # the last rows are no matter
    inst_map = np.moveaxis(inst_map, axis, 0)
    here = np.moveaxis(hover_targets(inst_map, (40, 40)).hv_map, axis, 0)[:, :, axis]
    assert here[0:20, 10:30].any() == (first >= 2) and here[30:40, 10:30].any()
    kept = np.moveaxis(hover_targets(inst_map, (40, 40), keep_border=True).hv_map, axis, 0)[:, :, axis]
    assert kept[0:20, 10:30].any() and (first < 2 or np.array_equal(kept, here))


def test_a_bar_by_hand():
    inst_map = np.zeros((12, 20), np.int32)
    inst_map[3:6, 4:15] = 9  # centre of mass at row 4, column 9
    hv_map = hover_targets(inst_map, inst_map.shape).hv_map
    # the centre's own pixel counts as 1: distances run from -4 to 6 and from 0 to 2
    np.testing.assert_allclose(hv_map[4, 4:15, 0], [-1, -0.75, -0.5, -0.25, 0, *(np.arange(1, 7) / 6)], atol=1e-6)
    np.testing.assert_allclose(hv_map[3:6, 9, 1], [0, 0.5, 1], atol=1e-6)


def test_shapes_types_and_crops():
    inst_map = np.zeros((30, 40), np.int32)
    inst_map[10:20, 10:30] = 1
    type_map = (inst_map * 3).astype(np.uint8)
    trusted = np.zeros(inst_map.shape, bool)
    trusted[12, 15] = True
    targets = hover_targets(inst_map, (20, 20), type_map, trusted)
    assert targets.np_map.shape == (20, 20) and targets.np_map.dtype == np.int64
    assert targets.hv_map.shape == (20, 20, 2) and targets.hv_map.dtype == np.float32
    assert targets.type_map.dtype == np.int64 and set(np.unique(targets.type_map)) == {0, 3}
    assert np.argwhere(targets.trusted).tolist() == [[7, 5]]
    everywhere = hover_targets(inst_map, (20, 20))
    assert everywhere.trusted.all() and everywhere.trusted.dtype == np.bool_ and everywhere.type_map is None


def test_an_empty_map_has_empty_targets():
    targets = hover_targets(np.zeros((16, 16), np.int32), (8, 8))
    assert not targets.np_map.any() and not targets.hv_map.any() and targets.trusted.all()


def test_trusted_is_a_copy():
    trusted = np.ones((8, 8), bool)
    hover_targets(np.zeros((8, 8), np.int32), (8, 8), trusted=trusted).trusted[:] = False
    assert trusted.all()


def test_a_map_smaller_than_the_output_is_an_error():
    with pytest.raises(ValueError, match=r"\(8, 9\).*\(8, 10\)"):
        hover_targets(np.zeros((8, 9), np.int32), (8, 10))
