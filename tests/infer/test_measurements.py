import math

import cv2
import numpy as np
import pytest
from skimage.measure import regionprops

from hovernet_cyclic.core.label_maps import extract_nuclei
from infer.geojson import outlines
from infer.measurements import MEASURES, Outline, centroid, measure

WHITE = np.full((80, 90, 3), 255, np.uint8)


def measured(mask, mpp=(0.5, 0.5), image=WHITE, prob=0.75):
    (nucleus,) = extract_nuclei(mask.astype(np.int32)).values()
    box = nucleus.bbox
    part = (slice(box.top, box.bottom), slice(box.left, box.right))
    np_prob = np.full(mask.shape, prob, np.float32)
    corners = np.concatenate([np.array(ring, np.int32) for ring in outlines(mask[part])])
    outline = Outline(nucleus.contour, corners)
    return dict(zip(MEASURES, measure(mask[part], outline, np_prob[part], image[part], mpp), strict=True))


def ellipse(rows, columns, angle=0):
    mask = np.zeros((80, 90), np.uint8)
    cv2.ellipse(mask, (45, 40), (columns, rows), angle, 0, 360, 1, -1)
    return mask


def test_a_disc_by_its_formulas():
    found = measured(ellipse(25, 25))
    assert found["area_um2"] == pytest.approx(math.pi * 25.5**2 / 4, rel=0.02)
    assert found["perimeter_um"] == pytest.approx(math.pi * 25.5, rel=0.04)
    assert found["eccentricity"] < 0.1 and found["solidity"] > 0.94 and found["prob"] == 0.75
    assert found["haematoxylin"] == pytest.approx(0, abs=1e-6)


def test_against_scikit_image():
    for angle in (0, 30, 75):
        mask = ellipse(12, 30, angle)
        (region,) = regionprops(mask.astype(np.int32))
        found = measured(mask)
        assert found["area_um2"] == region.area / 4
        assert found["eccentricity"] == pytest.approx(region.eccentricity, abs=0.003)
        assert found["solidity"] == pytest.approx(region.solidity, abs=0.05)
        assert found["perimeter_um"] == pytest.approx(region.perimeter / 2, rel=0.06)


def test_a_concave_nucleus_is_less_solid_and_a_square_is_all_solid():
    square = np.zeros((80, 90), np.uint8)
    square[10:30, 20:40] = 1
    assert measured(square)["solidity"] == 1.0
    square[10:30, 26:34] = 0
    square[24:30, 26:34] = 1
    assert measured(square)["solidity"] < 0.75


def test_dark_blue_is_haematoxylin_and_pixels_need_not_be_square():
    blue, pink = WHITE.copy(), WHITE.copy()
    blue[:], pink[:] = (90, 70, 150), (230, 160, 190)
    disc = ellipse(20, 20)
    assert measured(disc, image=blue)["haematoxylin"] > 3 * abs(measured(disc, image=pink)["haematoxylin"])
    flat = measured(disc, mpp=(0.25, 0.5))
    assert flat["area_um2"] == pytest.approx(measured(disc)["area_um2"] / 2)
    assert flat["eccentricity"] == pytest.approx(math.sqrt(1 - 0.25), abs=0.01)


def test_the_centroid_is_the_same_wherever_the_cut_out_begins():
    mask = ellipse(9, 14, 20)[20:60, 20:70]
    assert centroid(mask, 100_003, 7) == (centroid(mask, 0, 0)[0] + 100_003, centroid(mask, 0, 0)[1] + 7)
