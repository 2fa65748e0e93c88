import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hovernet_cyclic.core.label_maps import extract_nuclei
from hovernet_cyclic.core.types import SegmentedTile
from infer.overlay import draw_overlay, overlay_file
from infer.type_info import UNTYPED_COLOUR, TypeInfo, default_type_info

GREY = 100


def discs(shape=(60, 80), typed=False):
    inst_map = np.zeros(shape, np.int32)
    cv2.circle(inst_map, (20, 30), 10, 1, cv2.FILLED)
    cv2.circle(inst_map, (60, 20), 12, 2, cv2.FILLED)
    return SegmentedTile("a", inst_map, extract_nuclei(inst_map, inst_map if typed else None))


def plain(shape=(60, 80)):
    return np.full((*shape, 3), GREY, np.uint8)


def test_outlines_have_the_colour_of_their_type_and_the_rest_is_the_image():
    image, types = plain(), default_type_info(3)
    tile = discs(typed=True)
    drawn = draw_overlay(image, tile, types)
    assert (image == GREY).all()
    for inst_id in (1, 2):
        outline = (drawn == types.colour(inst_id)).all(axis=2)
        rows, columns = np.nonzero(outline)
        assert rows.size > 2 * np.pi * 8
        distances = np.hypot(columns - tile.nuclei[inst_id].centroid[0], rows - tile.nuclei[inst_id].centroid[1])
        radius = {1: 10, 2: 12}[inst_id]
        assert (abs(distances - radius) <= 2.5).all()
    untouched = (drawn == GREY).all(axis=2)
    assert untouched.mean() > 0.8


def test_dots_mark_centroids():
    tile = discs()
    without, marked = (draw_overlay(plain(), tile, TypeInfo(), dots) for dots in (False, True))
    assert (without[30, 20] == GREY).all() and (without[20, 60] == GREY).all()
    assert {tuple(marked[30, 20].tolist()), tuple(marked[20, 60].tolist())} == {(255, 0, 0)}


def test_the_png_is_rgb():
    image = plain()
    image[..., 0] = 7
    decoded = cv2.imdecode(np.frombuffer(overlay_file(image, discs(), TypeInfo()), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded[..., ::-1], draw_overlay(image, discs(), TypeInfo()))
    assert tuple(decoded[0, 0]) == (GREY, GREY, 7)


@given(st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_nuclei_at_the_edge_of_small_images(height, width, dots):
    inst_map = np.ones((height, width), np.int32)
    tile = SegmentedTile("a", inst_map, extract_nuclei(inst_map))
    drawn = draw_overlay(plain((height, width)), tile, TypeInfo(), dots)
    assert drawn.shape == (height, width, 3)
    assert (drawn == UNTYPED_COLOUR).all(axis=2).any() or not tile.nuclei or dots
