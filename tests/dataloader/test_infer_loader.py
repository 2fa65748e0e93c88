import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.infer_loader import TilePatches, mirror
from hovernet_cyclic.core.errors import DatasetError

PAD = st.integers(0, 30)


def walk(length, before, after):
    """Where a pixel comes from: to and fro between the ends, step by step."""
    places, place, step = [], 0, 1
    for _ in range(max(before, length + after) + 1):
        places.append(place)
        if length > 1:
            step = 1 if place == 0 else -1 if place == length - 1 else step
            place += step
    return places[before:0:-1] + places[: length + after]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), PAD, PAD, PAD, PAD)
def test_mirror_goes_to_and_fro(height, width, top, bottom, left, right):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    padded = mirror(image, (top, bottom, left, right))
    expected = image[walk(height, top, bottom)][:, walk(width, left, right)]
    np.testing.assert_array_equal(padded, expected)


def test_the_patch_of_one_pixel_is_that_pixel():
    image = np.array([[[7, 8, 9]]], np.uint8)
    (batch,) = TilePatches(image, (256, 256), (192, 192)).batches(4)
    assert list(batch.indices) == [0] and (batch.images == image).all()


def test_an_image_without_pixels_is_refused():
    with pytest.raises(DatasetError, match="holds no pixel"):
        TilePatches(np.zeros((0, 5, 3), np.uint8), (16, 16), (8, 8))
