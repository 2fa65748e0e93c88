import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hovernet_cyclic.core.label_maps import (
    boxes,
    extract_nuclei,
    instance_areas,
    majority_types,
    mean_type_probs,
    relabel,
    remove_small,
    split_disconnected,
)
from hovernet_cyclic.core.types import Box

GOLDEN = Path(os.environ.get("HOVERNET_CYCLIC_GOLDEN", Path(__file__).parents[4] / "shared" / "golden"))
BIG = 2**31 - 5  # ids too large for a lookup table
LABELS = arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0, 1, 2, 5, 9]))
WIDE_LABELS = arrays(
    np.int64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 3, 7, BIG])
)


@given(st.one_of(LABELS, WIDE_LABELS))
def test_areas_count_pixels(inst_map):
    ids, areas = instance_areas(inst_map)
    assert ids.tolist() == sorted(set(inst_map.ravel().tolist()) - {0})
    assert areas.tolist() == [int((inst_map == inst_id).sum()) for inst_id in ids]


@given(st.one_of(LABELS, WIDE_LABELS))
def test_relabel_keeps_instances_and_their_order(inst_map):
    result = relabel(inst_map)
    ids = instance_areas(inst_map)[0]
    assert result.dtype == np.int32
    assert instance_areas(result)[0].tolist() == list(range(1, len(ids) + 1))
    for index, inst_id in enumerate(ids, start=1):
        np.testing.assert_array_equal(result == index, inst_map == inst_id)


@given(st.one_of(LABELS, WIDE_LABELS), st.integers(0, 12))
def test_remove_small_drops_whole_instances(inst_map, min_area):
    result = remove_small(inst_map, min_area)
    for inst_id in instance_areas(inst_map)[0]:
        mask = inst_map == inst_id
        assert (result[mask] == (inst_id if mask.sum() >= min_area else 0)).all()
    assert not result[inst_map == 0].any()


@given(st.one_of(LABELS, WIDE_LABELS))
def test_boxes_are_tight(inst_map):
    found = boxes(inst_map)
    assert list(found) == instance_areas(inst_map)[0].tolist()
    for inst_id, box in found.items():
        rows, columns = np.nonzero(inst_map == inst_id)
        assert box == Box(rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)


def flood(mask, start):
    """The 8-connected piece of `mask` that holds `start`, pixel by pixel."""
    todo, piece = [start], set()
    while todo:
        row, column = todo.pop()
        inside = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
        if (row, column) in piece or not inside or not mask[row, column]:
            continue
        piece.add((row, column))
        todo += [(row + dr, column + dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)]
    return piece


@given(LABELS)
def test_split_disconnected_leaves_single_pieces(inst_map):
    result = split_disconnected(inst_map)
    np.testing.assert_array_equal(result > 0, inst_map > 0)
    for inst_id, area in zip(*instance_areas(result), strict=True):
        mask = result == inst_id
        start = tuple(np.argwhere(mask)[0])
        assert len(flood(inst_map == inst_map[start], start)) == area == len(flood(mask, start))
    assert set(instance_areas(inst_map)[0]) <= set(instance_areas(result)[0])


@settings(max_examples=60)
@given(LABELS, st.data())
def test_majority_types_by_brute_force(inst_map, data):
    type_map = data.draw(arrays(np.uint8, inst_map.shape, elements=st.integers(0, 3)))
    found = majority_types(inst_map, type_map)
    assert list(found) == instance_areas(inst_map)[0].tolist()
    for inst_id, (type_id, type_prob) in found.items():
        inside = type_map[inst_map == inst_id].tolist()
        ranked = sorted(set(inside), key=lambda t: (-inside.count(t), t))
        wanted = ranked[1] if ranked[0] == 0 and len(ranked) > 1 else ranked[0]
        assert type_id == wanted
        assert type_prob == inside.count(wanted) / (len(inside) + 1e-6)


@pytest.fixture(scope="module")
def schema():
    path = GOLDEN / "output_schema.json"
    if not path.exists():
        pytest.skip(f"no reference numbers at {GOLDEN}: set HOVERNET_CYCLIC_GOLDEN")
    return json.loads(path.read_text())["tile"]


@pytest.fixture(scope="module")
def golden_maps(schema):
    """inst_map int32 and type_map uint8 (100, 130) of the reference's tile."""
    import cv2

    runs = schema["inst_map_rle_rowmajor"]
    inst_map = np.repeat([value for value, _ in runs], [length for _, length in runs]).astype(np.int32)
    decoded = cv2.imread(str(GOLDEN / "tile_input.png"))[..., 2] % 8
    return inst_map.reshape(decoded.shape), decoded.astype(np.uint8)


@pytest.mark.parametrize("case", ["none", "types"])
def test_nuclei_equal_the_reference(schema, golden_maps, case):
    inst_map, type_map = golden_maps
    wanted = schema[case]["json"]["nuc"]
    nuclei = extract_nuclei(inst_map, type_map if case == "types" else None)
    assert [str(inst_id) for inst_id in nuclei] == list(wanted)
    for key, item in wanted.items():
        nucleus = nuclei[int(key)]
        assert [[nucleus.bbox.top, nucleus.bbox.left], [nucleus.bbox.bottom, nucleus.bbox.right]] == item["bbox"]
        assert list(nucleus.centroid) == item["centroid"]
        assert nucleus.contour.tolist() == item["contour"]
        assert nucleus.contour.dtype == np.int32
        assert (nucleus.type_id, nucleus.type_prob) == (item["type"], item["type_prob"])


def test_dots_and_lines_are_no_nuclei():
    inst_map = np.zeros((9, 9), np.int32)
    inst_map[1, 1] = 1
    inst_map[3, 2:6] = 2
    inst_map[5:8, 5:8] = 7
    assert list(extract_nuclei(inst_map)) == [7]
    assert extract_nuclei(inst_map)[7].centroid == (6.0, 6.0)


@given(LABELS)
def test_nuclei_do_not_depend_on_their_surroundings(inst_map):
    """The same tile inside a larger one gives the same nuclei, moved."""
    moved = extract_nuclei(np.pad(inst_map, ((4, 2), (3, 5))))
    for inst_id, nucleus in extract_nuclei(inst_map).items():
        np.testing.assert_array_equal(moved[inst_id].contour, nucleus.contour + np.array([3, 4]))
        assert moved[inst_id].centroid == pytest.approx((nucleus.centroid[0] + 3, nucleus.centroid[1] + 4))


def test_empty_tiles():
    for shape in ((5, 7), (0, 4)):
        empty = np.zeros(shape, np.uint16)
        assert boxes(empty) == {} == extract_nuclei(empty, empty)
        assert relabel(empty).shape == split_disconnected(empty).shape == remove_small(empty, 3).shape == shape


def test_negative_ids_and_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="negative"):
        relabel(np.array([[0, -1]]))
    with pytest.raises(ValueError, match="shape"):
        extract_nuclei(np.zeros((2, 3), int), np.zeros((3, 2), int))


@given(LABELS, st.integers(1, 4))
def test_type_probabilities_are_the_mean_over_each_nucleus(inst_map, nr_types):
    probs = np.random.default_rng(0).dirichlet(np.ones(nr_types), inst_map.shape).astype(np.float16)
    found = mean_type_probs(inst_map, probs)
    assert list(found) == [int(i) for i in np.unique(inst_map) if i]
    for inst_id, mean in found.items():
        assert mean.dtype == np.float32 and mean.shape == (nr_types,)
        np.testing.assert_allclose(mean, probs[inst_map == inst_id].astype(np.float64).mean(0), atol=1e-6)
    for inst_id, nucleus in extract_nuclei(inst_map, type_probs=probs).items():
        np.testing.assert_array_equal(nucleus.type_probs, found[inst_id])
        assert nucleus.type_id is None


def test_type_probabilities_of_nothing_and_of_another_shape():
    assert mean_type_probs(np.zeros((3, 4), int), np.zeros((3, 4, 2), np.float16)) == {}
    assert mean_type_probs(np.zeros((0, 4), int), np.zeros((0, 4, 2), np.float16)) == {}
    with pytest.raises(ValueError, match="type_probs"):
        extract_nuclei(np.zeros((2, 3), int), type_probs=np.zeros((3, 2, 2), np.float16))
