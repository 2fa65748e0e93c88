import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from hovernet_cyclic.core.runs import areas, boxes, run_starts, runs_of

MAPS = arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 0, 1, 2, 5]))


@given(MAPS)
def test_runs_are_the_map_in_reading_order(label_map):
    runs = runs_of(label_map)
    np.testing.assert_array_equal(np.repeat(runs.values, runs.lengths).reshape(label_map.shape), label_map)
    assert (runs.columns + runs.lengths <= label_map.shape[1]).all()  # none goes on in the next row
    for row, column, value in zip(runs.rows, runs.columns, runs.values, strict=True):
        assert label_map[row, column] == value
        assert column == 0 or label_map[row, column - 1] != value  # none could be longer


@given(MAPS, st.data())
def test_a_run_of_several_maps_holds_one_value_of_each(first, data):
    second = data.draw(arrays(np.int32, first.shape, elements=st.integers(0, 2)))
    together = set(run_starts(first, second).tolist())
    assert together == set(run_starts(first).tolist()) | set(run_starts(second).tolist())
    assert together == set(run_starts(first + 10 * second).tolist())


@given(MAPS)
def test_areas_and_boxes_are_those_of_the_pixels(label_map):
    runs = runs_of(label_map).of(runs_of(label_map).values > 0)
    found = areas(runs, runs.values, 6), boxes(runs, runs.values, 6)
    assert found[0].dtype == np.int64 and found[1].dtype == np.int32
    for value in range(1, 6):
        rows, columns = np.nonzero(label_map == value)
        assert found[0][value] == rows.size
        if rows.size:
            wanted = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
            assert found[1][value].tolist() == wanted


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_an_empty_map_has_no_runs(shape):
    assert all(field.size == 0 for field in runs_of(np.zeros(shape, np.uint16)))
