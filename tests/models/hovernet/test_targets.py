import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from models.hovernet.targets import hover_targets

GOLDEN = Path(os.environ.get("HOVERNET_CYCLIC_GOLDEN", Path(__file__).parents[4] / "shared" / "golden"))


def one_at_a_time(inst_map, shape):
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


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    sigma=st.sampled_from([0.7, 1.5, 3.0]),
)
def test_targets_equal_the_plain_way(seed, shape, sigma):
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal((40, 44)), sigma)
    inst_map = np.digitize(field, np.quantile(field, [0.4, 0.6, 0.8])).astype(np.int32) * 5
    shape = (shape[0], min(shape[1], 44))
    targets = hover_targets(inst_map, shape)
    np.testing.assert_allclose(targets.hv_map, one_at_a_time(inst_map, shape), atol=1e-6)
    assert np.abs(targets.hv_map).max(initial=0) <= 1


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
