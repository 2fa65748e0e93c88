"""Candidates: each nucleus finds its own threshold, and none is counted twice."""

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hovernet_cyclic.core.settings import CandidateSettings
from hovernet_cyclic.training.candidates import Candidate, Second, find_candidates, outline, outlined_by, slopes

MPP = 0.25
SHAPES = CandidateSettings()
STARS = CandidateSettings(seed_radii_um=(2.0, 3.0, 4.5))
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def find(score, evidence=None):
    score = np.asarray(score, np.float32)
    return find_candidates(score, np.zeros_like(score) if evidence is None else evidence, MPP, SHAPES)


def painted(candidate, shape):
    canvas = np.zeros(shape, np.uint8)
    cv2.drawContours(canvas, [candidate.contour], -1, 1, cv2.FILLED)
    return canvas > 0


def disc(shape, x, y, radius):
    rows, columns = np.indices(shape)
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def iou(one, other):
    return np.count_nonzero(one & other) / np.count_nonzero(one | other)


def uneven_field(contrasts, seed):
    """Discs of the given contrasts, on a lattice, on a background that rises by 1 from left to right."""
    rng = np.random.default_rng(seed)
    shape = (60, 60 * len(contrasts))
    score = np.linspace(0, 1, shape[1])[None].repeat(shape[0], 0)
    discs = []
    for i, contrast in enumerate(contrasts):
        mask = disc(shape, 60 * i + 30 + rng.integers(-8, 9), 30 + rng.integers(-8, 9), rng.uniform(10, 13))
        score = score + contrast * mask
        discs.append(mask)
    score = cv2.GaussianBlur(score, (0, 0), 1.0) + rng.normal(0, 0.01, shape)
    return score.astype(np.float32), discs


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_with_stars_too_candidates_do_not_overlap_and_numbers_that_are_none_are_survived(mpp):
    rng = np.random.default_rng(7)
    score = cv2.GaussianBlur(rng.normal(size=(140, 150)).astype(np.float32), (0, 0), 1.0 / mpp)
    evidence = np.zeros_like(score)
    found = find_candidates(score / score.std(), evidence, mpp, STARS)
    assert len(found) > 5
    assert sum(painted(one, score.shape).astype(int) for one in found).max() == 1
    evidence[:70] = np.nan
    find_candidates(score, evidence, mpp, STARS)
    score[40:50, 40:50] = np.nan
    find_candidates(score, evidence, mpp, STARS)


@QUICK
@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=6), st.integers(0, 2**16))
def test_every_disc_is_found_once_whatever_its_contrast(contrasts, seed):
    score, discs = uneven_field(contrasts, seed)
    masks = [painted(candidate, score.shape) for candidate in find(score)]
    for mask in discs:
        overlaps = [iou(mask, found) for found in masks]
        # a candidate lies up to a pixel outside of the edge, which on a radius of 10 px takes .17 of the overlap
        assert max(overlaps) > 0.72 and sum(overlap > 0.2 for overlap in overlaps) == 1


def test_no_single_threshold_finds_what_each_nucleus_finds_for_itself():
    score, discs = uneven_field([0.5, 0.4, 0.3, 0.4, 0.3], seed=1)
    assert min(max(iou(mask, painted(c, score.shape)) for c in find(score)) for mask in discs) > 0.8

    def missed(threshold):
        labels = cv2.connectedComponents((score > threshold).astype(np.uint8), connectivity=4)[1]
        found = [labels == i for i in range(1, labels.max() + 1)]
        return sum(max((iou(mask, one) for one in found), default=0) < 0.8 for mask in discs)

    stretched = (255 * (score - score.min()) / np.ptp(score)).astype(np.uint8)
    otsu = cv2.threshold(stretched, 0, 1, cv2.THRESH_OTSU)[0] / 255 * np.ptp(score) + score.min()
    assert missed(otsu) >= 3
    assert min(missed(threshold) for threshold in np.linspace(score.min(), score.max(), 64)) >= 1


def test_the_outline_lies_on_the_edge_and_not_outside_of_it():
    """A blurred edge has its steepest place where the disc ends; area alone would favour the level below."""
    mask = disc((80, 80), 40, 40, 12)
    (found,) = (painted(c, mask.shape) for c in find(cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2.5)))
    assert 0.93 < np.count_nonzero(found) / np.count_nonzero(mask) < 1.07


def test_proposed_instances_part_what_no_level_parts_and_worthier_regions_replace_them():
    """Five plateaus without a seam make a bent region, which is no nucleus; half a plateau loses to the whole."""
    shape = (90, 150)
    corner = [disc(shape, x, y, 11) for x, y in ((30, 30), (49, 30), (68, 30), (30, 49), (30, 68))]
    alone = disc(shape, 115, 45, 11)
    score = cv2.GaussianBlur((sum(corner) > 0).astype(np.float32) + alone, (0, 0), 1.0)
    evidence = np.zeros(shape, np.float32)
    assert len(find(score, evidence)) == 1
    proposed = np.where(alone & (np.indices(shape)[1] < 115), 6, 0).astype(np.int32)
    for inst_id, part in enumerate(corner, 1):
        proposed[part & (proposed == 0)] = inst_id
    found = find_candidates(score, evidence, MPP, SHAPES, Second(score, proposed))
    assert len(found) == 6
    for part in [*(proposed == inst_id for inst_id in range(1, 6)), alone]:
        assert max(iou(part, painted(c, shape)) for c in found) > 0.75


def test_a_later_cycle_judges_outlines_on_the_stain():
    """The network's map is a wider disc than the stain's: the outline is drawn where the stain ends."""
    shape = (80, 80)
    stain = cv2.GaussianBlur(disc(shape, 40, 40, 9).astype(np.float32), (0, 0), 1.0)
    opinion = cv2.GaussianBlur(disc(shape, 40, 40, 12).astype(np.float32), (0, 0), 1.5)
    nothing = np.zeros(shape, np.int32)
    (found,) = find_candidates(stain + opinion, opinion, MPP, SHAPES, Second(stain, nothing))
    (wide,) = find_candidates(stain + 3 * opinion, opinion, MPP, SHAPES)
    assert iou(painted(found, shape), disc(shape, 40, 40, 9)) > 0.8 and wide.area > 1.2 * found.area


def candidate_of(mask, quality=1.0):
    contour, area, solidity = outline(mask.astype(np.uint8))
    return Candidate(contour, area, solidity, 1.0, 0.0, quality, area)


@pytest.mark.parametrize(("told", "taught"), [(12, 11), (11, 11), (10, 10), (16, 16)])
def test_outlines_do_not_grow_from_cycle_to_cycle(told, taught):
    """The stain shows a disc of radius 11: what is a little larger becomes it, what is smaller or another stays."""
    shape = (80, 80)
    stain = [candidate_of(disc(shape, x, y, 11), 9.0) for x, y in ((20, 20), (40, 40))]
    far = candidate_of(disc(shape, 65, 15, 8))
    kept_far, found = outlined_by(stain, [far, candidate_of(disc(shape, 40, 40, told), 0.3)], shape)
    assert kept_far is far
    np.testing.assert_array_equal(painted(found, shape), disc(shape, 40, 40, taught))
    assert found.quality == 0.3 and found.area == pytest.approx(np.pi * taught**2, rel=0.05)


@QUICK
@given(st.integers(0, 2**16), st.floats(1.0, 4.0))
def test_candidates_never_overlap_and_stand_in_order(seed, grain):
    noise = np.random.default_rng(seed).normal(size=(96, 120))
    score = cv2.GaussianBlur(noise, (0, 0), grain)
    found = find(score)
    counts = sum((painted(candidate, score.shape).astype(int) for candidate in found), np.zeros(score.shape, int))
    assert counts.max(initial=0) <= 1
    assert [c.quality for c in found] == sorted(c.quality for c in found)
    for candidate in found:
        assert SHAPES.min_area_um2 <= candidate.area * MPP**2 <= SHAPES.max_area_um2
        assert SHAPES.lowest_solidity <= candidate.solidity <= 1.0001
        assert candidate.contour.dtype == np.int32 and candidate.contour.shape[1:] == (1, 2)


def test_a_region_in_the_hole_of_another_is_not_counted_beside_it():
    score = np.zeros((80, 80), np.float32)
    score[disc(score.shape, 40, 40, 16)], score[disc(score.shape, 40, 40, 12)] = 1, 0
    score[disc(score.shape, 40, 40, 6)] = 0.9
    (ring,) = find(score)
    assert ring.area > 700


@QUICK
@given(st.integers(0, 2**16), st.sampled_from([0.25, 0.5, 2.0, 8.0]), st.sampled_from([-4.0, 0.0, 2.0]))
def test_unit_and_zero_of_the_score_do_not_matter(seed, scale, shift):
    score, _ = uneven_field([0.4, 0.8, 1.2], seed)
    score = np.round(score * 4096) / 4096  # so that float32 holds the scaled and shifted values exactly
    plain, changed = find(score), find(score * scale + shift)
    assert len(plain) == len(changed)
    for one, other in zip(plain, changed, strict=True):
        assert iou(painted(one, score.shape), painted(other, score.shape)) > 0.97
        np.testing.assert_allclose([one.quality, one.edge], [other.quality, other.edge], rtol=0.05)


def pair(distance, levels):
    """Two discs of radius 10 px whose centres are `distance` px apart, out of focus: their masks, the score."""
    shape = (64, 80)
    masks = [disc(shape, 28, 32, 10), disc(shape, 28 + distance, 32, 10)]
    score = np.max([level * mask for level, mask in zip(levels, masks, strict=True)], axis=0)
    return masks, cv2.GaussianBlur(score.astype(np.float32), (0, 0), 1.0)


@pytest.mark.parametrize("levels", [(1.0, 1.0), (1.0, 0.6), (0.5, 1.0)])
def test_discs_with_a_seam_of_a_pixel_are_parted(levels):
    masks, score = pair(22, levels)
    assert score[32, 39] > 0.3 * min(levels), "the seam is dark itself"
    found = [painted(candidate, score.shape) for candidate in find(score)]
    assert len(found) == 2
    assert all(max(iou(mask, one) for one in found) > 0.8 for mask in masks)


def test_a_pair_without_a_seam_is_one_region_that_is_trusted_less_the_deeper_its_waist():
    """No level lies between two such discs, so nothing can part them here: only the shape speaks against the pair."""
    per_edge = []
    for distance in (0, 16, 18, 20):
        (region,) = find(pair(distance, (1.0, 1.0))[1])
        size = min(1, region.area * MPP**2 / SHAPES.full_area_um2)
        per_edge.append(region.quality / (region.edge * size))
    assert per_edge == sorted(per_edge, reverse=True)
    assert per_edge[1] < 0.9 * per_edge[0] and per_edge[3] < 0.7 * per_edge[0]


def test_evidence_decides_between_equal_outlines():
    score, discs = uneven_field([0.8, 0.8], seed=0)
    evidence = np.where(np.arange(score.shape[1]) < 60, 3.0, -3.0).astype(np.float32)[None].repeat(60, 0)
    better, worse = (max(find(score, evidence), key=lambda c: iou(mask, painted(c, score.shape))) for mask in discs)
    assert better.evidence == pytest.approx(3) and worse.evidence == pytest.approx(-3)
    assert worse.quality < 0.1 * better.quality


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (40, 40)])
@pytest.mark.parametrize("fill", [0.0, 1.0, -3.5])
def test_flat_maps_hold_nothing(shape, fill):
    assert find(np.full(shape, fill)) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2), (200, 200)])
def test_noise_is_survived(shape):
    score = np.random.default_rng(0).normal(size=shape)
    assert all(np.isfinite([c.quality, c.worth, c.edge, c.area]).all() for c in find(score))


def test_a_ramp_has_its_slopes_everywhere():
    rows, columns = np.indices((40, 40)).astype(np.float32)
    across, down = slopes(3 * rows + 4 * columns)
    np.testing.assert_allclose(across[5:-5, 5:-5], 4, rtol=1e-4)
    np.testing.assert_allclose(down[5:-5, 5:-5], 3, rtol=1e-4)


def hollow_nucleus():
    """A disc that is dark at its rim alone, whose rim is one with two fibres beside it: (score, disc)."""
    shape = (90, 90)
    whole = disc(shape, 45, 45, 13)
    score = (whole & ~disc(shape, 45, 45, 10)).astype(np.float32)
    score[38:41, 52:] = score[50:53, :38] = 1
    return cv2.GaussianBlur(score, (0, 0), 1.0), whole


def best_iou(candidates, mask):
    return max((iou(mask, painted(candidate, mask.shape)) for candidate in candidates), default=0)


def test_a_hollow_nucleus_that_no_level_cuts_out_is_found_by_its_outer_edge():
    score, whole = hollow_nucleus()
    nothing = np.zeros_like(score)
    assert best_iou(find_candidates(score, nothing, MPP, STARS), whole) > 0.75
    assert best_iou(find_candidates(score, nothing, MPP, SHAPES), whole) < 0.6


def test_later_too_what_the_stain_alone_shows_is_a_candidate():
    score, whole = hollow_nucleus()
    nothing = np.zeros_like(score)
    unseen = Second(score, np.zeros(score.shape, np.int32))
    assert best_iou(find_candidates(nothing, nothing, MPP, STARS, unseen), whole) > 0.75
