"""Star-convex outlines: hollow nuclei and touching ones, which no threshold cuts out, are found by their outer edge."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hovernet_cyclic.training.candidates import slopes
from hovernet_cyclic.training.star_outlines import best_closed_paths, find_seeds, star_outlines

MPP = 0.25
RADII = (2.0, 3.0, 4.5)
QUICK = settings(max_examples=25, deadline=None)


def disc(shape, x, y, radius):
    rows, columns = np.indices(shape)
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def iou(one, other):
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


def painted(score):
    score = np.asarray(score, np.float32)
    masks = []
    for star in star_outlines(score, slopes(score), MPP, RADII):
        mask = np.zeros(score.shape, np.uint8)
        cv2.fillPoly(mask, [star.corners], 1)
        masks.append(mask > 0)
    return masks


@QUICK
@given(st.integers(0, 2**16), st.floats(8, 18), st.floats(0.0, 0.75))
def test_a_disc_is_found_filled_or_hollow(seed, radius, hollow):
    rng = np.random.default_rng(seed)
    shape, centre = (72, 80), 36 + rng.uniform(-4, 4, 2)
    whole = disc(shape, *centre, radius)
    score = whole & ~disc(shape, *centre, hollow * (radius - 2))
    score = cv2.GaussianBlur(score.astype(np.float32), (0, 0), 1.0) + rng.normal(0, 0.02, shape)
    assert max(iou(whole, mask) for mask in painted(score)) > 0.8


def test_hollow_discs_that_touch_are_parted():
    shape = (60, 90)
    centres = ((30, 30), (53, 30))
    discs = [disc(shape, *centre, 12) for centre in centres]
    score = np.zeros(shape, np.float32)
    for mask, centre in zip(discs, centres, strict=True):
        score = np.maximum(score, (mask & ~disc(shape, *centre, 8)).astype(np.float32))
    score = cv2.GaussianBlur(score, (0, 0), 1.0)
    _, pieces = cv2.connectedComponents((score > 0.3).astype(np.uint8))
    assert pieces.max() == 1
    masks = painted(score)
    assert all(max(iou(mask, found) for found in masks) > 0.75 for mask in discs)


def test_the_fall_is_the_slope_on_the_outline():
    rows, columns = np.indices((81, 81)).astype(np.float32)
    cone = np.maximum(0, 20 - np.hypot(rows - 40, columns - 40)) * 0.5
    best = max(star_outlines(cone, slopes(cone), MPP, RADII), key=lambda star: star.fall)
    assert best.fall == pytest.approx(0.5, abs=0.02)


def test_a_seed_lies_in_the_middle_of_a_ring_and_none_on_a_flat_map():
    ring = disc((60, 60), 31, 28, 12) & ~disc((60, 60), 31, 28, 8)
    seeds = find_seeds(ring.astype(np.float32), MPP, (3.0,))
    assert np.hypot(*(seeds - (31, 28)).T).min() <= 1.5
    assert find_seeds(np.ones((60, 60), np.float32), MPP, RADII).shape == (0, 2)
    assert find_seeds(ring.astype(np.float32), MPP, ()).shape == (0, 2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 2), (70, 90)])
def test_whatever_the_map_outlines_lie_on_it(shape):
    score = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    stars = star_outlines(score, slopes(score), MPP, RADII)
    assert min(shape) < 40 or len(stars) > 5
    for star in stars:
        assert (star.corners >= 0).all() and (star.corners < (shape[1], shape[0])).all()
        assert np.isfinite(star.fall)


@QUICK
@given(st.integers(0, 2**16))
def test_a_path_is_the_best_of_all_that_close(seed):
    gain = np.random.default_rng(seed).normal(size=(3, 6, 3)).astype(np.float32)
    gain[:, :, 1] += 1.5  # a ring that most directions show, as a nucleus has
    paths = best_closed_paths(gain, bend=1)
    assert sum(map(closes, paths)) >= 2, "nearly all do"
    for i, path in enumerate(paths):
        if not closes(path):
            continue
        best = max(gain[i, range(6), list(one)].sum() for one in itertools.product(range(3), repeat=6) if closes(one))
        assert gain[i, range(6), path].sum() == pytest.approx(best, abs=1e-5)


def closes(path):
    return all(abs(one - other) <= 1 for one, other in zip(path, np.roll(path, -1), strict=True))


def test_of_paths_alike_in_gain_each_is_found_in_its_own_rows():
    planted = np.random.default_rng(0).integers(3, 8, (50, 1)) + np.zeros((1, 16), np.int64)
    gain = np.zeros((50, 16, 11), np.float32)
    np.put_along_axis(gain, planted[..., None], 1, axis=2)
    np.testing.assert_array_equal(best_closed_paths(gain, 2), planted)
