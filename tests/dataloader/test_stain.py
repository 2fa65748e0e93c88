"""Colour deconvolution against hand arithmetic and against scikit-image's matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import hed_from_rgb

from dataloader import stain


@pytest.fixture
def picture():
    return np.random.default_rng(5).integers(0, 256, (31, 17, 3), dtype=np.uint8)


def test_density_of_white_black_and_a_tenth():
    image = np.array([[[255, 0, 24]]], np.uint8)
    np.testing.assert_allclose(stain.optical_density(image)[0, 0], [0, np.log10(256), np.log10(256 / 25)], atol=1e-6)


def test_unmixing_finds_the_amounts_that_were_mixed():
    amounts = np.array([0.5, 0.3, 0.1])
    vectors = np.array([[0.65, 0.704, 0.286], [0.072, 0.99, 0.105], [0.268, 0.57, 0.776]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    colour = np.round(256 * 10 ** -(amounts @ vectors) - 1).astype(np.uint8).reshape(1, 1, 3)
    found = stain.rgb_to_hed(colour)
    assert found.dtype == np.float32 and found.shape == (1, 1, 3)
    np.testing.assert_allclose(found[0, 0], amounts, atol=0.01)


def test_vectors_are_those_of_scikit_image_scaled_to_unit_length():
    theirs = np.linalg.inv(hed_from_rgb)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    np.testing.assert_allclose(stain.stain_vectors(), theirs, atol=0.006)


def test_haematoxylin_is_the_first_channel(picture):
    amount = stain.haematoxylin(picture)
    assert amount.shape == picture.shape[:2] and amount.dtype == np.float32
    np.testing.assert_allclose(amount, stain.rgb_to_hed(picture)[..., 0], atol=1e-5)


def test_restaining_with_nothing_changes_no_pixel(picture):
    np.testing.assert_array_equal(stain.restain(picture, np.ones(3), np.zeros(3)), picture)


def test_more_haematoxylin_raises_haematoxylin_alone():
    image = np.full((4, 4, 3), (150, 120, 160), np.uint8)
    before, after = (stain.rgb_to_hed(i)[0, 0] for i in (image, stain.restain(image, (1, 1, 1), (0.1, 0, 0))))
    np.testing.assert_allclose(after - before, [0.1, 0, 0], atol=0.01)
    after = stain.rgb_to_hed(stain.restain(image, (1.2, 1, 1), (0, 0, 0)))[0, 0]
    np.testing.assert_allclose(after, before * [1.2, 1, 1], atol=0.01)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0, 0.5), shift=st.floats(0, 0.2))
def test_jitter_keeps_shape_and_type_for_any_strength(seed, scale, shift):
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14
    jittered = stain.jitter_stain(image, np.random.default_rng(seed), scale, shift)
    assert jittered.shape == image.shape and jittered.dtype == np.uint8
