"""Outlines into label maps: which pixels are inside, and files that cannot be used."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from dataloader.outlines import read_outlines
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.label_maps import extract_nuclei
from hovernet_cyclic.core.types import SegmentedTile
from infer.geojson import feature_collection, outlines
from infer.type_info import TypeInfo

SHAPE = (8, 10)
TYPES = ("background", "tumour", "lymphocyte")


def aperio(path, *layers):
    """layers: (name, rings), rings of (x, y), as ImageScope saves them."""
    text = ['<?xml version="1.0"?>', '<Annotations MicronsPerPixel="0.252">']
    for number, (name, rings) in enumerate(layers, 1):
        text += [f'<Annotation Id="{number}" Name=""><Attributes><Attribute Name="{name}" Value=""/></Attributes>']
        text += ["<Regions><RegionAttributeHeaders/>"]
        for ring in rings:
            vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ring)
            text += [f'<Region Id="1" Type="0" NegativeROA="0"><Vertices>{vertices}</Vertices></Region>']
        text += ["</Regions><Plots/></Annotation>"]
    path.write_text("\n".join([*text, "</Annotations>"]), encoding="utf-8")
    return path


def qupath(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}), encoding="utf-8")
    return path


def feature(rings, name=None, kind="Polygon", **more):
    properties = {"objectType": "annotation"} | ({"classification": {"name": name}} if name else {})
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": rings}, "properties": properties, **more}


def box(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def filled(top, left, bottom, right, value=1):
    expected = np.zeros(SHAPE, np.int32)
    expected[top:bottom, left:right] = value
    return expected


def test_aperio_pixels_have_their_centres_at_whole_numbers(tmp_path):
    path = aperio(tmp_path / "a.xml", ("", [box(1.5, 0.5, 4.5, 3.4)[:-1], box(6.2, 4.9, 20, 30)]))
    expected = filled(1, 2, 4, 5) + filled(5, 7, 8, 10, 2)
    annotation = read_outlines(path, SHAPE)
    np.testing.assert_array_equal(annotation.inst_map, expected)
    assert annotation.type_map is None and annotation.tile_id == "a"


def test_a_slanted_outline_by_hand(tmp_path):
    path = aperio(tmp_path / "a.xml", ("", [[(0.1, -0.5), (4.5, 3.9), (0.1, 3.9)]]))  # below the line y = x - 0.6
    expected = np.zeros(SHAPE, np.int32)
    for row in range(4):
        expected[row, 1 : row + 1] = 1
    np.testing.assert_array_equal(read_outlines(path, SHAPE).inst_map, expected)


def test_layers_name_types_and_some_are_left_out(tmp_path):
    path = aperio(
        tmp_path / "a.xml",
        ("Tumour", [box(0.5, 0.5, 2.5, 2.5)]),
        ("Ambiguous", [box(4.5, 0.5, 9.5, 7.5)]),
        ("lymphocyte", [box(0.5, 4.5, 3.5, 6.5)]),
    )
    annotation = read_outlines(path, SHAPE, TYPES, left_out=("ambiguous",))
    np.testing.assert_array_equal(annotation.inst_map, filled(1, 1, 3, 3) + filled(5, 1, 7, 4, 2))
    np.testing.assert_array_equal(annotation.type_map, filled(1, 1, 3, 3) + filled(5, 1, 7, 4, 2))
    assert annotation.type_map.dtype == np.uint8
    assert annotation.notes == ("1 outlines of ambiguous are left out",)
    with pytest.raises(DatasetError, match="class 'Ambiguous'"):
        read_outlines(path, SHAPE, TYPES)


def test_qupath_pixels_are_squares_from_whole_numbers(tmp_path):
    path = qupath(
        tmp_path / "a.geojson", feature([box(2, 1, 5, 4)], "Lymphocyte"), feature([box(7, 5, 12, 9)], "tumour")
    )
    annotation = read_outlines(path, SHAPE, TYPES)
    np.testing.assert_array_equal(annotation.inst_map, filled(1, 2, 4, 5) + filled(5, 7, 8, 10, 2))
    np.testing.assert_array_equal(annotation.type_map, filled(1, 2, 4, 5, 2) + filled(5, 7, 8, 10, 1))


def test_holes_parts_cells_and_what_has_no_area(tmp_path):
    ring, hole, far = box(0, 0, 5, 5), box(1, 1, 3, 3), box(7, 0, 9, 2)
    cell = feature([box(0, 5, 10, 8)], nucleusGeometry={"type": "Polygon", "coordinates": [box(1, 6, 3, 8)]})
    path = qupath(
        tmp_path / "a.geojson",
        feature([[ring, hole], [far]], kind="MultiPolygon"),
        cell,
        feature([1, 2], kind="Point"),
        feature([[[1, 1], [2, 2]]]),
    )
    expected = filled(0, 0, 5, 5) - filled(1, 1, 3, 3) + filled(0, 7, 2, 9) + filled(6, 1, 8, 3, 2)
    annotation = read_outlines(path, SHAPE)
    np.testing.assert_array_equal(annotation.inst_map, expected)
    assert annotation.notes == (
        "1 objects are points or lines and are left out",
        "1 outlines have fewer than 3 points and are left out",
    )


def test_a_bare_list_of_features_and_one_alone_are_read(tmp_path):
    one = feature([box(2, 1, 5, 4)])
    for number, content in enumerate(([one], one)):
        path = tmp_path / f"{number}.geojson"
        path.write_text(json.dumps(content))
        np.testing.assert_array_equal(read_outlines(path, SHAPE).inst_map, filled(1, 2, 4, 5))


def test_an_outline_outside_of_the_image_is_an_empty_mask(tmp_path):
    path = qupath(tmp_path / "a.geojson", feature([box(20, 20, 30, 30)]), feature([box(-9, -9, -1, -1)]))
    annotation = read_outlines(path, SHAPE)
    assert not annotation.inst_map.any() and annotation.notes == ("2 of 2 masks hold no nucleus",)


@given(mask=arrays(np.bool_, SHAPE))
def test_outlines_along_pixel_edges_give_the_mask_back(mask, tmp_path_factory):
    """But for holes, which the writer fills."""
    rings = outlines(mask.astype(np.uint8))
    path = qupath(tmp_path_factory.getbasetemp() / "edges.geojson", *(feature([ring]) for ring in rings))
    found = read_outlines(path, SHAPE).inst_map > 0
    holes = found & ~mask
    assert not (mask & ~found).any()
    assert not (holes[0].any() or holes[-1].any() or holes[:, 0].any() or holes[:, -1].any())


def test_what_the_toolkit_writes_for_qupath_is_read_back(tmp_path):
    inst_map = filled(1, 1, 4, 4) + filled(2, 5, 7, 9, 2) + filled(5, 0, 8, 4, 3)
    tile = SegmentedTile("a", inst_map, extract_nuclei(inst_map), 0.25)
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(feature_collection(tile, TypeInfo({}))))
    np.testing.assert_array_equal(read_outlines(path, SHAPE).inst_map, inst_map)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.xml", "", "empty file"),
        ("a.xml", "<Annotations><Annotation>", "damaged or no XML"),
        ("a.xml", "<svg/>", "begins with <svg>"),
        ("a.xml", "<Annotations><Annotation><Region><Vertex X='1'/></Region></Annotation></Annotations>", "vertex"),
        (
            "a.xml",
            "<Annotations><Annotation><Region><Vertex X='1' Y='b'/></Region></Annotation></Annotations>",
            "vertex",
        ),
        ("a.xml", "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><Annotations>&x;</Annotations>", "damaged"),
        ("a.xml", "<!DOCTYPE a [<!ENTITY x 'x'>]><Annotations/>", "damaged"),
        ("a.geojson", "{", "damaged or no JSON"),
        ("a.geojson", "3", "no GeoJSON features"),
        ("a.geojson", '{"a": 1}', "no GeoJSON features"),
        ("a.geojson", '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[["a", 1]]]}}]}', "no GeoJSON"),
        ("a.geojson", '{"geometry": {"type": "Polygon", "coordinates": [[[NaN, 1], [2, 2], [3, 1]]]}}', "finite"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=words) as caught:
        read_outlines(tmp_path / name, SHAPE)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"b\.xml does not exist"):
        read_outlines(tmp_path / "b.xml", SHAPE)
