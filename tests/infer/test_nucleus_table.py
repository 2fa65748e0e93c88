import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hovernet_cyclic.core.types import Box, Nucleus
from infer.measurements import MEASURES
from infer.nucleus_table import Described, concatenate, from_bytes, to_bytes
from infer.slide_record import BAND, OpenCluster, pack, read_head, with_unreadable


def nucleus(x, y, points=3, typed=True):
    contour = np.array([[x + i, y + i * i] for i in range(points)], np.int32)
    probs = np.array([0.1, 0.9], np.float32) if typed else None
    return Nucleus(
        Box(y, x, y + 3, x + 4), (x + 0.25, y + 0.5), contour, 1 if typed else None, 0.9 if typed else None, probs
    )


def table_of(*places, typed=True):
    described = Described(2 if typed else 0)
    for i, (x, y) in enumerate(places):
        rings = [np.array([[x, y], [x + 1, y], [x, y]], np.int32)] * (1 + i % 2)
        described.add(nucleus(x, y, 3 + i, typed), rings, tuple(float(i) for _ in MEASURES), i % 2 == 0)
    return described.table()


def same(first, second):
    return all(
        np.array_equal(getattr(first, field.name), getattr(second, field.name), equal_nan=field.name == "type_prob")
        and getattr(first, field.name).dtype == getattr(second, field.name).dtype
        for field in dataclasses.fields(first)
    )


PLACES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=6)


@given(PLACES, PLACES, st.booleans())
def test_tables_are_stored_joined_and_reordered_without_loss(first, second, typed):
    one, other = table_of(*first, typed=typed), table_of(*second, typed=typed)
    assert same(from_bytes(to_bytes(one)), one)
    both = concatenate([one, other])
    assert len(both) == len(first) + len(second)
    assert same(both.take(np.arange(len(one))), one)
    backwards = both.take(np.arange(len(both))[::-1])
    assert same(backwards.take(np.arange(len(both))[::-1]), both)
    for i in range(len(both)):
        x, y = [*first, *second][i]
        assert both.contour(i)[0].tolist() == [x, y]
        rings = list(both.rings(i))
        assert all(ring[0].tolist() == ring[-1].tolist() == [x, y] for ring in rings) and 1 <= len(rings) <= 2


def test_a_record_is_read_in_parts():
    clusters = (OpenCluster((3, 4), Box(1, 2, 3, 4), Box(0, 0, 9, 9)),)
    content = pack(table_of((5, 5), (6, BAND - 1), (7, BAND), (8, 3 * BAND)), clusters)
    head = read_head(content)
    assert {band: count for band, (_, _, count) in head.bands.items()} == {0: 1, 1: 2, 3: 1}
    assert head.nuclei == 4 and head.open_clusters == clusters and head.unreadable == ()
    named = read_head(with_unreadable(content, (Box(1, 1, 2, 2),)))
    assert named.unreadable == (Box(1, 1, 2, 2),) and named.bands == head.bands
    offset, length, _ = head.bands[1]
    assert from_bytes(content[head.size + offset :][:length]).centroid[:, 0].tolist() == [6.25, 7.25]
