import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloader.resample import axis_taps, resample
from dataloader.slides import SlideScale, SlideView, slide_scale, view_at
from hovernet_cyclic.core.errors import SlideError
from hovernet_cyclic.core.types import Box


class Held:
    """A slide held in memory."""

    def __init__(self, *levels, mpp=None, magnification=None):
        self.path, self.mpp, self.magnification, self.origin = "held.svs", mpp, magnification, (0, 0)
        self._levels = levels
        self.level_shapes = tuple(level.shape[:2] for level in levels)

    def read(self, level, box):
        assert 0 <= box.top < box.bottom <= self.level_shapes[level][0]
        assert 0 <= box.left < box.right <= self.level_shapes[level][1]
        return self._levels[level][box.top : box.bottom, box.left : box.right]

    def close(self):
        pass


def noise(height, width):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.sampled_from([0.37, 0.5, 0.998, 1.004, 1.7, 2.0, 3.3]), st.data())
def test_pixels_do_not_depend_on_the_box(factor, data):
    view = view_at(Held(noise(90, 70)), SlideScale((0.25, 0.25), "file"), 0.25 * factor)
    if view.factors == (1.0, 1.0):
        view = SlideView(view.reader, 0, (factor, factor), (int(90 / factor), int(70 / factor)), view.mpp)
    height, width = view.shape
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = Box(top, left, data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width)))
    whole = view.read(Box(0, 0, height, width))
    np.testing.assert_array_equal(view.read(box), whole[box.top : box.bottom, box.left : box.right])


def test_halving_is_the_mean_of_four_pixels_and_doubling_lies_between():
    image = noise(6, 8)
    rows, columns = axis_taps(0, 3, 2.0, 6), axis_taps(0, 4, 2.0, 8)
    mean = image.reshape(3, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(resample(image, (0, 0), rows, columns) - mean).max() <= 0.5
    ramp = np.repeat(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(2, axis=0)
    doubled = resample(ramp, (0, 0), axis_taps(0, 4, 0.5, 2), axis_taps(0, 16, 0.5, 8))
    # Centres of the halves lie a quarter off those of the wholes: 0, 2.5, 7.5, 12.5 ..., held at the border.
    assert doubled[0, :4, 0].tolist() == [0, 3, 8, 13] and doubled[0, -1, 0] == 70


def test_the_nearest_finer_level_is_read():
    reader = Held(noise(160, 160), noise(80, 80), noise(20, 20))
    scale = SlideScale((0.25, 0.25), "file")
    wanted = {0.25: (0, 1.0), 0.2525: (0, 1.0), 0.5: (1, 1.0), 0.7: (1, 1.4), 2.0: (2, 1.0), 0.125: (0, 0.5)}
    for mpp, (level, factor) in wanted.items():
        view = view_at(reader, scale, mpp)
        assert view.level == level and view.factors[0] == pytest.approx(factor, abs=1e-9)
    assert view_at(reader, scale, 0.2525).mpp == (0.25, 0.25)
    assert view_at(reader, scale, 0.5).scale_to_level0 == (2.0, 2.0)
    centre = view_at(reader, scale, 0.5).to_level0([0, 0])  # the middle of 2 x 2 pixels
    assert centre.tolist() == [0.5, 0.5]


def test_the_scale_is_given_or_the_files_or_guessed_or_asked_for():
    image = noise(9, 9)
    assert slide_scale(Held(image, mpp=(0.5, 0.5)), 0.2) == SlideScale((0.2, 0.2), "given")
    assert slide_scale(Held(image, mpp=(0.5, 0.4), magnification=40)) == SlideScale((0.5, 0.4), "file")
    assert slide_scale(Held(image, magnification=20)) == SlideScale((0.5, 0.5), "magnification")
    with pytest.raises(SlideError, match=r"held\.svs does not say how large its pixels are: add --mpp="):
        slide_scale(Held(image))
