"""A network asked about the same image from several sides."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dataloader.augs import apply_turn
from dataloader.infer_loader import TilePatches
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.geometry import grow, within
from hovernet_cyclic.core.types import Box, Pixels, RawMaps, whole_image
from infer.base import NetworkSegmenter
from infer.views import TURNS, MeanOfViews, turned_back
from models.hovernet.net_desc import HoVerNet


def two_nuclei():
    """Of different shapes, off the centre of a map that is not square."""
    inst_map = np.zeros((40, 56), np.int32)
    inst_map[4:19, 6:15] = 1
    inst_map[22:31, 20:47] = 2
    return inst_map


class Exact:
    """Answers with what is coloured in the image, and how far each pixel lies from the middle of its box."""

    def raw_maps(self, image):
        inst_map = image[..., 0].astype(np.int32)
        hv_map = np.zeros((*inst_map.shape, 2), np.float32)
        for inst_id, (rows, columns) in enumerate(ndimage.find_objects(inst_map), 1):
            down, across = np.mgrid[rows, columns]
            offsets = np.stack([across - across.mean(), down - down.mean()], -1) / [np.ptp(across), np.ptp(down)]
            hv_map[rows, columns] = np.where((inst_map[rows, columns] == inst_id)[..., None], offsets, 0)
        return RawMaps((inst_map > 0).astype(np.float32), hv_map, image[..., 0], None)


def image_of(inst_map):
    return np.repeat(inst_map[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("turn", TURNS)
def test_maps_come_back_as_if_the_image_had_not_been_turned(turn):
    image = image_of(two_nuclei())
    plain, back = Exact().raw_maps(image), turned_back(Exact().raw_maps(apply_turn(image, turn)), turn)
    np.testing.assert_array_equal(back.np_prob, plain.np_prob)
    np.testing.assert_array_equal(back.type_map, plain.type_map)
    np.testing.assert_allclose(back.hv_map, plain.hv_map, atol=1e-6)


def test_the_turns_are_all_different():
    image = image_of(two_nuclei())[:40, :40]
    assert len({apply_turn(image, turn).tobytes() for turn in TURNS}) == 8


REACH = 40


class Above:
    """A network that sees 40 px round a window, and answers with the red of the pixel that far above: its h is 0."""

    margin = REACH

    def cell(self, whole):
        return 64, 64

    def begin(self, pixels):
        image = TilePatches(pixels, (64 + 2 * REACH, 64 + 2 * REACH), (64, 64)).image[..., 0].astype(np.float32) / 255
        height, width = pixels.wanted.height, pixels.wanted.width
        np_prob = image[:height, REACH : width + REACH]
        upwards = np.dstack([np.zeros_like(np_prob), -np_prob])
        probs = np.dstack([np_prob, np.ones_like(np_prob) / 3]).astype(np.float16)
        return lambda: RawMaps(np_prob, upwards, probs.argmax(-1).astype(np.uint8), probs)


def neighbours(image, views):
    """(red, h, v): means of the pixels that are above, seen from each side; those of the whole image."""
    red = np.pad(image[..., 0].astype(np.float32) / 255, REACH, mode="reflect")
    middle, before, after = slice(REACH, -REACH), slice(None, -2 * REACH), slice(2 * REACH, None)
    above, right, below, left = red[before, middle], red[middle, after], red[after, middle], red[middle, before]
    nothing = np.zeros_like(above)
    seen = [(above, nothing, -above), (right, right, nothing), (below, nothing, below), (left, -left, nothing)]
    return np.mean([seen[side] for side in (0, 1, 2, 3, 2, 3, 0, 1)[:views]], axis=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 10**6), st.sampled_from(range(1, 9)), st.data())
def test_windows_of_any_image_get_the_mean_over_the_views_that_the_whole_gets(height, width, seed, views, data):
    """At the border too, where what is beyond is the mirrored inside, from each side."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    top, left = (data.draw(st.integers(0, (length - 1) // 64)) * 64 for length in (height, width))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    window, segmenter = Box(top, left, bottom, right), MeanOfViews(Above(), views)
    read = grow(window, segmenter.margin, within=Box(0, 0, height, width))
    answer = segmenter.raw_maps_of(Pixels(image[within(read, Box(0, 0, height, width))], read, (height, width), window))
    red, across, down = neighbours(image, views)[:, top:bottom, left:right]
    np.testing.assert_allclose(answer.np_prob, red, atol=1e-6)
    np.testing.assert_allclose(answer.hv_map, np.dstack([across, down]), atol=1e-6)
    told = np.take_along_axis(answer.type_probs, answer.type_map[..., None], axis=-1)[..., 0]
    assert (told >= answer.type_probs.max(axis=-1)).all()  # equal where half precision makes them so
    np.testing.assert_allclose(answer.type_probs[..., 0], red, atol=1e-3)
    assert answer.np_prob.dtype == answer.hv_map.dtype == np.float32 and answer.type_probs.dtype == np.float16


def test_a_window_is_answered_by_a_network_as_the_whole_is():
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    segmenter = MeanOfViews(NetworkSegmenter(HoVerNet("small", 3), "small", "cpu", largest_patch=208), 4)
    whole, box = segmenter.raw_maps(image), Box(0, 0, 150, 170)
    assert whole.np_prob.shape == (150, 170) and whole.type_probs.shape == (150, 170, 3)
    for window in (Box(64, 0, 90, 64), Box(128, 64, 150, 170)):
        read = grow(window, segmenter.margin, within=box)
        answer = segmenter.raw_maps_of(Pixels(image[within(read, box)], read, (150, 170), window))
        np.testing.assert_allclose(answer.np_prob, whole.np_prob[within(window, box)], rtol=0, atol=1e-5)
        np.testing.assert_allclose(answer.hv_map, whole.hv_map[within(window, box)], rtol=0, atol=1e-5)


def test_one_view_is_the_network_itself():
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    plain, seen = Above().begin(whole_image(image))(), MeanOfViews(Above(), 1)
    with pytest.raises(RecipeError, match="9 views: give 1 to 8"):
        MeanOfViews(Above(), 9)
    for name in ("np_prob", "hv_map", "type_map", "type_probs"):
        np.testing.assert_array_equal(getattr(seen.raw_maps(image), name), getattr(plain, name))
