"""Nuclei painted one by one: who keeps what they share, and what is said of it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dataloader.instances import Piece, paint, piece_of


def rectangle(top, left, height, width, type_id=0):
    return Piece(np.ones((height, width), bool), top, left, type_id)


def test_the_smaller_nucleus_keeps_what_is_shared():
    small, large = rectangle(1, 1, 2, 2, 7), rectangle(0, 0, 3, 3, 5)
    for pieces, ids in (([small, large], (1, 2)), ([large, small], (2, 1))):
        painted = paint(pieces, (4, 4), typed=True)
        expected = np.zeros((4, 4), np.int32)
        expected[:3, :3], expected[1:3, 1:3] = ids[1], ids[0]
        np.testing.assert_array_equal(painted.inst_map, expected)
        np.testing.assert_array_equal(painted.type_map, np.choose(expected, [0, *(p.type_id for p in pieces)]))
        assert painted.notes == ("1 of 2 nuclei lost 4 px to smaller ones that overlap them",)


def test_empty_and_hidden_masks_take_a_number_and_are_said():
    twin = rectangle(0, 0, 2, 2)
    painted = paint([twin, None, rectangle(0, 0, 2, 2)], (2, 3))
    np.testing.assert_array_equal(painted.inst_map, [[3, 3, 0], [3, 3, 0]])
    assert painted.type_map is None
    assert painted.notes == (
        "1 of 3 masks hold no nucleus",
        "1 of 3 nuclei lost 4 px to smaller ones that overlap them",
        "1 nuclei lie wholly under smaller ones and are gone",
    )


def test_nothing_is_a_map_of_background():
    painted = paint([], (2, 3), typed=True)
    assert not painted.inst_map.any() and painted.inst_map.shape == painted.type_map.shape == (2, 3)
    assert painted.notes == ()


@given(arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 5)))
def test_a_label_map_taken_apart_is_painted_back(inst_map):
    pieces = [piece_of(inst_map == k, k) for k in range(1, 6)]
    painted = paint(pieces, inst_map.shape, typed=True)
    np.testing.assert_array_equal(painted.inst_map, inst_map)
    np.testing.assert_array_equal(painted.type_map, inst_map)
    assert len(painted.notes) == (any(piece is None for piece in pieces))
