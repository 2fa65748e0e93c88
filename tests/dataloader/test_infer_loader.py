import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.infer_loader import TilePatches, mirror
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.geometry import grow
from hovernet_cyclic.core.types import Box, Pixels, whole_image

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
    patches = TilePatches(whole_image(image), (256, 256), (192, 192))
    assert list(patches.batches(4)) == [range(0, 1)]
    assert patches.image.shape == (256, 256, 3) and (patches.image == image).all()


def test_an_image_without_pixels_is_refused():
    with pytest.raises(DatasetError, match="holds no pixel"):
        TilePatches(whole_image(np.zeros((0, 5, 3), np.uint8)), (16, 16), (8, 8))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_window_has_the_surroundings_that_it_has_in_the_whole(data):
    """Mirrored at the border of the whole alone, though only the window and a margin are read."""
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    margin, out = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 12))
    whole = Box(0, 0, height, width)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Box(top, left, data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width)))
    read = grow(window, margin + data.draw(st.integers(0, 3)), within=whole)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    part = image[read.top : read.bottom, read.left : read.right]
    patches = TilePatches(Pixels(part, read, (height, width), window), (out + 2 * margin,) * 2, (out, out))
    shape = patches.lattice.padded_shape
    assert patches.image.shape == (*shape, 3)
    surrounded = mirror(image, (margin, margin, margin, margin))[window.top :, window.left :]
    rows, columns = window.height + 2 * margin, window.width + 2 * margin
    np.testing.assert_array_equal(patches.image[:rows, :columns], surrounded[:rows, :columns])
