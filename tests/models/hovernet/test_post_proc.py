import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed

from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.label_maps import relabel, remove_small
from hovernet_cyclic.core.types import RawMaps
from models.hovernet import post_proc
from models.hovernet.post_proc import segment
from models.hovernet.targets import hover_targets

GOLDEN = Path(os.environ.get("HOVERNET_CYCLIC_GOLDEN", Path(__file__).parents[4] / "shared" / "golden"))


def raw_of(inst_map):
    """The maps of a network that has learnt `inst_map` by heart."""
    targets = hover_targets(inst_map, inst_map.shape, keep_border=True)
    return RawMaps(targets.np_map.astype(np.float32), targets.hv_map)


def shift(raw, window):
    return RawMaps(raw.np_prob[window].copy(), raw.hv_map[window].copy())


def noisy_maps(seed, shape=(90, 110), sparse=0.0):
    """Smooth random maps: regions of all shapes, with many edges in them; the sparser, the smaller."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), sigma) for sigma in (4, 3, 3)]
    prob, h_map, v_map = (field / field.std() for field in fields)
    return RawMaps(
        (0.5 + 0.3 * (prob - sparse)).clip(0, 1).astype(np.float32), np.dstack([h_map, v_map]).astype(np.float32)
    )


def whole_tile_reference(raw):
    """The reference's steps one after the other, each on the whole tile."""
    mask = (remove_small(ndimage.label(raw.np_prob >= 0.5)[0], 10) > 0).astype(np.int32)

    def min_max(values):
        return cv2.normalize(values, None, alpha=0, beta=1, norm_type=cv2.NORM_MINMAX, dtype=cv2.CV_32F)

    h_map, v_map = (min_max(np.ascontiguousarray(raw.hv_map[..., c])) for c in (0, 1))
    edges = np.maximum(
        1 - min_max(cv2.Sobel(h_map, cv2.CV_64F, 1, 0, ksize=21)),
        1 - min_max(cv2.Sobel(v_map, cv2.CV_64F, 0, 1, ksize=21)),
    )
    edges = np.maximum(edges - (1 - mask), 0)
    heights = -cv2.GaussianBlur((1.0 - edges) * mask, (3, 3), 0)
    markers = ndimage.binary_fill_holes(np.maximum(mask - (edges >= 0.4), 0)).astype(np.uint8)
    markers = cv2.morphologyEx(markers, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    return watershed(heights, markers=remove_small(ndimage.label(markers)[0], 10), mask=mask)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference's numbers are not here")
@pytest.mark.parametrize("case", range(10))
def test_hovernet_variant_equals_the_reference(case):
    with np.load(GOLDEN / "post_proc.npz") as golden:
        maps, expected = golden[f"map_{case}"].astype(np.float32), golden[f"inst_{case}"]
    found = segment(RawMaps(maps[..., 0], maps[..., 1:]), "hovernet")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_hovernet_variant_equals_its_steps_on_the_whole_tile(seed):
    raw = noisy_maps(seed)
    np.testing.assert_array_equal(segment(raw, "hovernet"), whole_tile_reference(raw))


def drawn_maps(rng, shape, kind):
    """Maps of a network that has learnt random ellipses by heart, or nearly so."""
    inst_map = np.zeros(shape, np.int32)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for inst_id in range(1, rng.integers(1, 40)):
        y, x, height, width = rng.uniform((0, 0, 1, 1), (*shape, 12, 12))
        distance = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2
        inst_map[(distance <= 1) & (distance > (0.5 if kind == "rings" else -1))] = inst_id
    raw = raw_of(inst_map)
    if kind == "blurred":
        return RawMaps(ndimage.gaussian_filter(raw.np_prob, 2), ndimage.gaussian_filter(raw.hv_map, (2, 2, 0)))
    if kind == "noisy":
        noise = rng.normal(0, 0.2, raw.hv_map.shape).astype(np.float32)
        return RawMaps((raw.np_prob + noise[..., 0]).clip(0, 1), raw.hv_map + noise)
    if kind == "coarse":  # many equal values: ties must be broken as the reference breaks them
        return RawMaps(raw.np_prob, np.round(raw.hv_map * 4) / 4)
    return raw


@pytest.mark.parametrize("kind", ["perfect", "rings", "blurred", "noisy", "coarse"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.tuples(st.integers(1, 120), st.integers(1, 120)))
def test_hovernet_variant_equals_its_steps_on_drawn_nuclei(kind, seed, shape):
    raw = drawn_maps(np.random.default_rng(seed), shape, kind)
    np.testing.assert_array_equal(segment(raw, "hovernet"), whole_tile_reference(raw))


def test_maps_of_half_precision_are_taken():
    """Stored maps often are; the arithmetic is that of float32 all the same."""
    raw = noisy_maps(3)
    half = RawMaps(raw.np_prob.astype(np.float16), raw.hv_map.astype(np.float16))
    full = RawMaps(half.np_prob.astype(np.float32), half.hv_map.astype(np.float32))
    for variant in ("hovernet", "local"):
        np.testing.assert_array_equal(segment(half, variant), segment(full, variant))


def ellipse(shape, centre, axes, angle):
    mask = np.zeros(shape, np.uint8)
    cv2.ellipse(mask, centre, axes, angle, 0, 360, 1, cv2.FILLED)
    return mask > 0


@st.composite
def drawn_nuclei(draw):
    """int32 (128, 128): a grid of ellipses, and beside some of them a second one that touches it."""
    inst_map = np.zeros((128, 128), np.int32)
    for row in (32, 96):
        for column in (32, 96):
            radius = draw(st.integers(6, 11))
            axes = (radius, draw(st.integers(max(5, radius - 3), radius)))
            angle = draw(st.integers(0, 179))
            first = ellipse(inst_map.shape, (column, row), axes, angle)
            inst_map[first] = inst_map.max() + 1
            if draw(st.booleans()):
                direction = np.deg2rad(draw(st.integers(0, 359)))
                other = draw(st.integers(6, 10))
                distance = axes[1] + other
                place = (round(column + distance * np.cos(direction)), round(row + distance * np.sin(direction)))
                second = ellipse(inst_map.shape, place, (other, other), 0) & ~first
                inst_map[second] = inst_map.max() + 1
    return inst_map


@settings(max_examples=60, deadline=None)
@given(drawn_nuclei())
def test_nuclei_come_back_from_their_targets(inst_map):
    count = inst_map.max()
    # a nucleus that its neighbour cuts in two is two regions, and rightly comes back as two
    assume(all(ndimage.label(inst_map == inst_id)[1] == 1 for inst_id in range(1, count + 1)))
    found = segment(raw_of(inst_map))
    assert sorted(np.unique(found)) == list(range(count + 1))
    for inst_id in range(1, count + 1):
        mask = inst_map == inst_id
        twin = found == np.bincount(found[mask]).argmax()
        assert (mask & twin).sum() / (mask | twin).sum() >= 0.9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), top=st.integers(0, 20), left=st.integers(0, 20))
def test_local_variant_sees_only_the_neighbourhood(seed, top, left):
    """A region of nuclei, well inside a window of the tile, is cut in the window as in the tile."""
    raw = noisy_maps(seed, (120, 120), sparse=0.6)
    window = (slice(top, top + 100), slice(left, left + 100))
    whole, part = segment(raw)[window], segment(shift(raw, window))
    inside = np.zeros(part.shape, bool)
    inside[12:-12, 12:-12] = True
    regions = ndimage.label(raw.np_prob[window] >= 0.5)[0]
    cut_off = np.isin(regions, np.unique(regions[~inside]))
    settled = inside & ~cut_off
    assume((settled & (whole > 0)).any())
    pairs = np.unique(np.stack([whole[settled], part[settled]]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_nucleus_is_the_same_whatever_else_is_on_the_tile(seed):
    """Where markers begin to grow at equal heights too: steps of three values make many such."""
    rng = np.random.default_rng(seed)
    tiles = []
    for _ in range(36):
        np_prob = np.kron(rng.random((5, 5)) < 0.8, np.ones((8, 8))).astype(np.float32)
        hv_map = np.kron(rng.choice([-1, 0, 1], (5, 5, 2)), np.ones((8, 8, 1))).astype(np.float32)
        tiles.append(RawMaps(np.pad(np_prob, 8), np.pad(hv_map, ((8, 8), (8, 8), (0, 0)))))
    rows = [tiles[i : i + 6] for i in range(0, 36, 6)]
    whole = segment(
        RawMaps(
            np.block([[t.np_prob for t in row] for row in rows]),
            np.vstack([np.hstack([t.hv_map for t in row]) for row in rows]),
        )
    )
    for i, tile in enumerate(tiles):
        part = whole[i // 6 * 56 :][:56, i % 6 * 56 :][:, :56]
        alone = segment(tile)
        pairs = np.unique(np.stack([part.ravel(), alone.ravel()]), axis=1)
        assert len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


def test_where_a_network_answers_no_number_the_rest_of_the_tile_stays_as_it_is():
    raw = noisy_maps(3)
    height, width = raw.np_prob.shape
    gap = np.zeros((height, 24), np.float32)
    np_prob = np.hstack([raw.np_prob, gap, raw.np_prob])
    spoilt = raw.hv_map.copy()
    spoilt[: height // 2] = np.nan
    for left in (raw.hv_map, spoilt):
        hv_map = np.hstack([left, np.zeros((height, 24, 2), np.float32), raw.hv_map])
        found = segment(RawMaps(np_prob, hv_map))[:, width + 24 :]
        alone = segment(
            RawMaps(np.hstack([gap, raw.np_prob]), np.hstack([np.zeros((height, 24, 2), np.float32), raw.hv_map]))
        )[:, 24:]
        pairs = np.unique(np.stack([found.ravel(), alone.ravel()]), axis=1)
        assert len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))


@pytest.mark.parametrize("limit", [1, 300])
def test_how_many_regions_are_flooded_together_changes_nothing(limit, monkeypatch):
    raw = noisy_maps(5)
    expected = segment(raw)
    monkeypatch.setattr(post_proc, "PIXELS_AT_ONCE", limit)
    np.testing.assert_array_equal(segment(raw), expected)
    monkeypatch.setattr(post_proc, "REGIONS_AT_ONCE", 2)
    np.testing.assert_array_equal(segment(raw), expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), smallest=st.integers(11, 200))
def test_small_nuclei_are_left_out_and_the_rest_renumbered(seed, smallest):
    raw = noisy_maps(seed)
    np.testing.assert_array_equal(segment(raw, "local", smallest), relabel(remove_small(segment(raw), smallest)))


def test_an_artefact_far_away_changes_nothing_for_the_local_variant_only():
    inst_map = np.zeros((120, 120), np.int32)
    inst_map[ellipse(inst_map.shape, (30, 30), (9, 9), 0)] = 1
    inst_map[ellipse(inst_map.shape, (48, 30), (9, 9), 0) & (inst_map == 0)] = 2
    raw = raw_of(inst_map)
    hv_map = raw.hv_map.copy()
    hv_map[90:110:2, 90:110] = 300.0
    spoilt = RawMaps(raw.np_prob, hv_map)
    np.testing.assert_array_equal(segment(raw), segment(spoilt))
    assert segment(raw).max() == 2
    assert (segment(spoilt, "hovernet") != segment(raw, "hovernet")).any()


@pytest.mark.parametrize("variant", ["local", "hovernet"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (64, 64)])
def test_a_tile_without_nuclei_is_empty(variant, shape):
    raw = RawMaps(np.zeros(shape, np.float32), np.zeros((*shape, 2), np.float32))
    found = segment(raw, variant)
    assert found.shape == shape and found.dtype == np.int32 and not found.any()


@pytest.mark.parametrize("variant", ["local", "hovernet"])
def test_regions_under_ten_pixels_are_no_nuclei(variant):
    inst_map = np.zeros((40, 40), np.int32)
    inst_map[5:8, 5:8] = 1
    inst_map[20:34, 20:34] = 2
    found = segment(raw_of(inst_map), variant)
    assert not found[:10, :10].any() and (found[22:32, 22:32] > 0).all()


def test_a_nucleus_too_thin_for_a_marker_is_kept_by_the_local_variant():
    inst_map = np.zeros((40, 40), np.int32)
    inst_map[10:13, 5:25] = 1
    raw = raw_of(inst_map)
    assert not segment(raw, "hovernet").any()
    np.testing.assert_array_equal(segment(raw), inst_map)


def test_unknown_variant_is_named():
    with pytest.raises(RecipeError, match=r"'otsu'.*local, hovernet"):
        segment(RawMaps(np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.float32)), "otsu")
