import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from hovernet_cyclic.core.label_maps import extract_nuclei
from hovernet_cyclic.core.types import Box, Nucleus, SegmentedTile
from infer.geojson import feature_collection, outlines
from infer.type_info import default_type_info

MASKS = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1))


def filled(ring, shape):
    """The pixels in a ring: of the edges left of a pixel's centre, how many times round they go."""
    mask = np.zeros(shape, int)
    for (x0, y0), (x1, y1) in pairwise(ring):
        assert (x0 == x1) != (y0 == y1)
        if x0 == x1:
            mask[min(y0, y1) : max(y0, y1), x0:] += np.sign(y0 - y1)
    return mask


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_rings_are_the_mask_with_its_holes_filled(mask):
    pieces, count = ndimage.label(mask)
    rings = outlines(mask)
    assert len(rings) == count
    inside = [filled(ring, mask.shape) for ring in rings]
    for piece in range(1, count + 1):
        wanted = ndimage.binary_fill_holes(pieces == piece).astype(int)
        assert sum(np.array_equal(got, wanted) for got in inside) == 1
    for ring in rings:
        assert ring[0] == ring[-1]
        corners = [tuple(corner) for corner in ring[:-1]]
        assert len(set(corners)) == len(corners)  # it never meets itself
        steps = np.diff(np.array(ring), axis=0)
        assert ((steps[:-1] != 0).argmax(axis=1) != (steps[1:] != 0).argmax(axis=1)).all()  # every corner is a turn


@settings(max_examples=100, deadline=None)
@given(MASKS, st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
def test_rings_begin_at_the_left_end_of_their_topmost_edge_and_count_from_the_origin(mask, origin):
    rings = outlines(mask)
    for ring in rings:
        assert ring[0] == min(ring, key=lambda corner: (corner[1], corner[0]))
        assert ring[1][1] == ring[0][1]
    assert outlines(mask, origin) == [[[x + origin[0], y + origin[1]] for x, y in ring] for ring in rings]


def two_nuclei():
    inst_map = np.zeros((10, 12), np.int32)
    inst_map[2:6, 3:8] = 4
    inst_map[6:10, 8:12] = 7
    type_map = np.where(inst_map == 4, 1, 2).astype(np.uint8)
    return inst_map, type_map


def test_what_qupath_is_given():
    inst_map, type_map = two_nuclei()
    tile = SegmentedTile("a", inst_map, extract_nuclei(inst_map, type_map), mpp=0.5)
    collection = json.loads(json.dumps(feature_collection(tile, default_type_info(3, ("none", "tumour", "stroma")))))
    assert collection["type"] == "FeatureCollection"
    first, second = collection["features"]
    assert first == {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[3, 2], [8, 2], [8, 6], [3, 6], [3, 2]]]},
        "properties": {
            "objectType": "detection",
            "classification": {"name": "tumour", "color": first["properties"]["classification"]["color"]},
            "measurements": {"inst_id": 4, "area_px": 20, "area_um2": 5.0, "type_prob": pytest.approx(1, abs=1e-6)},
        },
    }
    assert second["geometry"]["coordinates"] == [[[8, 6], [12, 6], [12, 10], [8, 10], [8, 6]]]
    assert second["properties"]["classification"]["name"] == "stroma"
    colours = [feature["properties"]["classification"]["color"] for feature in (first, second)]
    assert colours[0] != colours[1] and all(len(colour) == 3 for colour in colours)


def test_without_types_and_scale():
    inst_map, _ = two_nuclei()
    features = feature_collection(SegmentedTile("a", inst_map, extract_nuclei(inst_map)), default_type_info(None))
    assert features["features"][0]["properties"]["measurements"] == {"inst_id": 4, "area_px": 20}
    assert features["features"][0]["properties"]["classification"]["name"] == "Nucleus"
    empty = SegmentedTile("a", np.zeros((4, 4), np.int32), {})
    assert feature_collection(empty, default_type_info(None)) == {"type": "FeatureCollection", "features": []}


def test_pieces_that_touch_at_a_corner_are_two_polygons():
    inst_map = np.kron(np.eye(2, dtype=np.int32), np.ones((3, 3), np.int32))
    nucleus = Nucleus(Box(0, 0, 6, 6), (2.5, 2.5), np.zeros((3, 2), np.int32))
    (feature,) = feature_collection(SegmentedTile("a", inst_map, {1: nucleus}), default_type_info(None))["features"]
    assert feature["geometry"] == {
        "type": "MultiPolygon",
        "coordinates": [[[[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]]], [[[3, 3], [6, 3], [6, 6], [3, 6], [3, 3]]]],
    }
    assert feature["properties"]["measurements"]["area_px"] == 18


def test_the_probability_of_each_type_is_a_measurement():
    inst_map, type_map = two_nuclei()
    probs = np.zeros((*inst_map.shape, 3), np.float16)
    probs[..., 1], probs[..., 2] = 0.75, 0.25
    tile = SegmentedTile("a", inst_map, extract_nuclei(inst_map, type_map, probs))
    for feature in feature_collection(tile, default_type_info(3, ("none", "tumour", "stroma")))["features"]:
        measured = feature["properties"]["measurements"]
        assert [measured[f"p({name})"] for name in ("none", "tumour", "stroma")] == [0.0, 0.75, 0.25]
