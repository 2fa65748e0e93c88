"""Pseudo masks: what is taught, what is background and what is left unsaid."""

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hovernet_cyclic.core.settings import DataSettings, PseudoMaskSettings, TrainRecipe
from hovernet_cyclic.core.types import ActivationMap, ImageTile, PseudoMask, RawMaps
from hovernet_cyclic.training.candidates import Candidate
from hovernet_cyclic.training.pseudo_masks import (
    TileCandidates,
    inset,
    logit,
    make_pseudo_masks,
    outset,
    rank_among,
    standings,
    surest,
    tile_candidates,
)

MPP = 0.25
SETTINGS = PseudoMaskSettings(dismiss_below=0.25, inset_um=0.0)
RECIPE = TrainRecipe("test", DataSettings("folder", MPP), pseudo_masks=SETTINGS)
SIDE = 200


def candidate(x, y, quality, radius=5):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.circle(mask, (x, y), radius, 1, cv2.FILLED)
    contour = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0]
    return Candidate(contour, float(mask.sum()), 1.0, 1.0, 0.0, quality, quality)


def tile_of(*candidates, doubtful=False, name="t"):
    return TileCandidates(name, list(candidates), np.full((SIDE, SIDE), doubtful))


def spots(count):
    return [(20 + 40 * (i % 5), 20 + 40 * (i // 5)) for i in range(count)]


def test_the_best_are_taught_the_worst_are_background_and_the_rest_is_left_out():
    """Of eight candidates of ranks 0, 1/8 ... 7/8: two are dismissed, three are unsure, three are trusted."""
    places = spots(8)
    tile = tile_of(*(candidate(x, y, quality) for quality, (x, y) in enumerate(places)))
    (mask,) = make_pseudo_masks([tile], 3, MPP, 0.6, SETTINGS)
    assert (mask.tile_id, mask.cycle) == ("t", 3)
    centres = [(mask.inst_map[y, x], mask.trusted[y, x]) for x, y in places]
    assert centres == [(0, True)] * 2 + [(0, False)] * 3 + [(1, True), (2, True), (3, True)]
    np.testing.assert_allclose(mask.confidence, [5 / 8, 6 / 8, 7 / 8])
    assert mask.trusted[0, 0], "pixels far from every candidate are background"


def test_rank_is_among_all_tiles_of_the_cycle():
    good, bad = [tile_of(*(candidate(x, y, q) for x, y in spots(4)), name=str(q)) for q in (9.0, 1.0)]
    good_mask, bad_mask = make_pseudo_masks([good, bad], 1, MPP, 0.5, SETTINGS)
    assert good_mask.inst_map.max() == 4 and bad_mask.inst_map.max() == 0
    np.testing.assert_array_equal(good_mask.confidence, 0.5)


def test_a_tile_all_of_whose_candidates_are_poor_has_its_best_ones_trusted_where_they_are_compared_within_it():
    within = dataclasses.replace(SETTINGS, within_tile=1.0)
    rich, pale = [tile_of(*(candidate(x, y, q + n) for n, (x, y) in enumerate(spots(4)))) for q in (10.0, 0.0)]
    masks = make_pseudo_masks([rich, pale], 1, MPP, 0.5, within)
    assert [len(mask.confidence) for mask in masks] == [2, 2]
    assert [len(mask.confidence) for mask in make_pseudo_masks([rich, pale], 1, MPP, 0.5, SETTINGS)] == [4, 0]


def test_a_candidate_alone_in_its_tile_is_not_the_worst_for_it():
    among = np.linspace(0, 1, 101)
    (alone,) = standings([0.99], among, 0.5)
    assert alone == pytest.approx(0.5 * 99 / 101 + 0.25)


@given(st.lists(st.lists(st.integers(0, 20), max_size=8), min_size=1, max_size=4), st.floats(0, 1))
def test_standings_rise_with_quality_within_a_tile_whatever_the_weight(tiles, within_tile):
    among = np.sort([quality for tile in tiles for quality in tile])
    for tile in tiles:
        found = standings(tile, among, within_tile)
        assert ((found >= 0) & (found < 1)).all()
        order = np.argsort(tile, kind="stable")
        assert (np.diff(found[order]) >= 0).all()
        np.testing.assert_allclose(standings(tile, among, 0.0), rank_among(among, np.asarray(tile)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=25), st.floats(0.25, 1.0), st.booleans())
def test_ids_confidence_and_trust_agree(qualities, trust_above, doubtful):
    found = [candidate(x, y, q) for q, (x, y) in zip(sorted(qualities), spots(len(qualities)), strict=True)]
    (mask,) = make_pseudo_masks([tile_of(*found, doubtful=doubtful)], 1, MPP, trust_above, SETTINGS)
    ids = np.unique(mask.inst_map)
    np.testing.assert_array_equal(ids[ids > 0], np.arange(1, len(mask.confidence) + 1))
    assert mask.inst_map.dtype == np.int32 and mask.trusted.dtype == bool and mask.confidence.dtype == np.float32
    assert np.all((mask.confidence >= np.float32(trust_above)) & (mask.confidence <= 1))
    assert mask.trusted[mask.inst_map > 0].all()


def test_a_doubtful_pixel_is_trusted_only_close_to_a_taught_nucleus():
    tile = tile_of(*(candidate(x, y, q) for q, (x, y) in enumerate(spots(5))), doubtful=True)
    (mask,) = make_pseudo_masks([tile], 1, MPP, 0.7, SETTINGS)
    x, y = spots(5)[4]
    assert mask.trusted[y, x] and mask.trusted[y + 5 + 3, x], "the surround is .75 um, 3 px"
    assert not mask.trusted[y + 5 + 4, x] and not mask.trusted[spots(1)[0][1], spots(1)[0][0]]


def test_an_unsure_neighbour_of_a_taught_nucleus_stays_unsaid():
    others = [candidate(x, y, 0.0) for x, y in spots(20)[10:]]
    taught, unsure = candidate(20, 20, 9.0), candidate(32, 20, 5.0)  # a pixel between them
    (mask,) = make_pseudo_masks([tile_of(*others, unsure, taught)], 1, MPP, 0.9, SETTINGS)
    assert mask.inst_map.max() == 1 and mask.inst_map[20, 20] == 1
    assert mask.trusted[20, 25] and not mask.trusted[20, 27:38].any(), "though it lies within the surround"


def test_without_candidates_all_is_background():
    masks = make_pseudo_masks([tile_of(), tile_of(name="u")], 1, MPP, 0.6, SETTINGS)
    for mask in masks:
        assert not mask.inst_map.any() and mask.trusted.all() and mask.confidence.shape == (0,)


def stained(centres, shape=(96, 96)):
    """An image whose discs take haematoxylin up, on eosin."""
    image = np.full((*shape, 3), (235, 170, 205), np.uint8)
    for centre in centres:
        cv2.circle(image, centre, 8, (90, 60, 140), cv2.FILLED)
    return ImageTile("t", cv2.GaussianBlur(image, (0, 0), 1.0), MPP)


def activation(evidence):
    return ActivationMap("t", np.asarray(evidence, np.float32)[None], np.ones(1, np.float32))


@pytest.mark.parametrize("teacher", [None, 0.0, 0.5, 1.0])
def test_stained_discs_become_candidates_with_and_without_a_teacher(teacher):
    centres = [(24, 24), (70, 30), (40, 70)]
    tile = stained(centres)
    evidence = np.full((96, 96), -3.0)
    evidence[:48] = 3
    maps = None if teacher is None else raw_maps(np.full((96, 96), teacher))
    found = tile_candidates(tile, activation(evidence), maps, RECIPE)
    points = sorted(cv2.minEnclosingCircle(c.contour)[0] for c in found.candidates if c.area > 120)
    np.testing.assert_allclose(points, sorted(centres), atol=1.0)
    assert found.doubtful[24, 24] and not found.doubtful[5, 5], "dark and evident pixels are doubtful, pale ones not"
    if teacher in (None, 0.0):
        assert not found.doubtful[70, 40], "neither front end nor teacher holds that disc possible"


def raw_maps(prob):
    return RawMaps(np.asarray(prob, np.float32), np.zeros((*prob.shape, 2), np.float32), None)


def test_the_pale_inside_of_a_dark_rim_is_left_out_with_it():
    tile = ImageTile("t", np.full((96, 96, 3), (235, 170, 205), np.uint8), MPP)
    cv2.circle(tile.image, (48, 48), 9, (90, 60, 140), 3)
    dark = cv2.circle(np.zeros((96, 96), np.uint8), (48, 48), 9, 1, 3) > 0
    found = tile_candidates(tile, activation(np.where(dark, 3, -3)), None, RECIPE)
    assert found.doubtful[48, 48] and found.doubtful[48, 57] and not found.doubtful[48, 75]
    unclosed = dataclasses.replace(RECIPE, pseudo_masks=PseudoMaskSettings(close_um=0.0))
    open_rims = tile_candidates(tile, activation(np.where(dark, 3, -3)), None, unclosed)
    assert open_rims.doubtful[48, 57] and not open_rims.doubtful[48, 48]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(0, 3))
def test_inset_and_outset_keep_to_their_instance(seed, radius):
    blocks = np.random.default_rng(seed).integers(0, 4, (6, 7)).astype(np.int32)
    inst_map = np.kron(blocks, np.ones((9, 9), np.int32))
    inner, outer = inset(inst_map, radius), outset(inst_map, radius)
    assert np.all((inner == 0) | (inner == inst_map)) and np.all((inst_map == 0) | (outer == inst_map))
    if radius == 0:
        np.testing.assert_array_equal(inner, inst_map)
        np.testing.assert_array_equal(outer, inst_map)
    for row, column in np.argwhere(inner > 0)[::17]:
        near = inst_map[max(0, row - radius) : row + radius + 1, column]
        assert np.all(near == inner[row, column])


def test_a_nucleus_is_taught_to_end_inside_of_its_candidates_outline():
    tile = tile_of(candidate(50, 50, 1.0, radius=8), candidate(100, 50, 2.0, radius=0))
    (mask,) = make_pseudo_masks([tile], 1, MPP, 0.0, dataclasses.replace(SETTINGS, dismiss_below=0.0, inset_um=0.5))
    assert mask.inst_map[50, 50] == 1 and mask.inst_map[50, 55] == 1 and mask.inst_map[50, 57] == 0
    assert mask.trusted[50, 57] and mask.trusted[50, 58], "the ring between is taught as background"
    np.testing.assert_array_equal(mask.confidence, [0.0])  # of the single pixel nothing is left


def test_the_surest_are_those_of_the_highest_rank():
    mask = PseudoMask("t", 1, np.zeros((4, 4), np.int32), np.ones((4, 4), bool), np.array([0.9, 0.6, 0.75], np.float32))
    assert surest(mask, 0.75) == [1, 3] and surest(mask, 0.95) == []


def test_a_flat_tile_gives_a_finite_empty_mask():
    tile = ImageTile("t", np.full((64, 64, 3), 240, np.uint8), MPP)
    found = tile_candidates(tile, activation(np.zeros((64, 64))), None, RECIPE)
    (mask,) = make_pseudo_masks([found], 1, MPP, 0.6, SETTINGS)
    assert found.candidates == [] and not mask.inst_map.any() and mask.trusted.all()


def test_logit_is_held_within_its_bounds():
    values = logit(np.array([0.0, 0.01, 0.5, 0.75, 1.0], np.float32))
    np.testing.assert_allclose(values, [-np.log(99), -np.log(99), 0, np.log(3), np.log(99)], rtol=1e-5, atol=1e-6)
    assert values.dtype == np.float32
