import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hovernet_cyclic.core.metrics import overlap_table, paired_centroids, score
from hovernet_cyclic.core.type_scores import TypedTally, TypeTally, type_tally


@st.composite
def typed_maps(draw):
    """Two maps of blocks, and a type 0..3 for each nucleus of each."""
    maps, types = [], []
    for _ in range(2):
        inst_map = np.zeros((16, 16), np.int32)
        for inst_id in range(1, draw(st.integers(1, 6)) + 1):
            top, left = draw(st.integers(0, 12)), draw(st.integers(0, 12))
            inst_map[top : top + draw(st.integers(1, 6)), left : left + draw(st.integers(1, 6))] = inst_id
        count = len(np.unique(inst_map)) - 1
        maps.append(inst_map)
        types.append(np.array(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), np.int64))
    return maps, types


def restricted(inst_map, types, wanted):
    """The map with only the nuclei of one type."""
    ids = np.unique(inst_map)[1:]
    return np.where(np.isin(inst_map, ids[types == wanted]), inst_map, 0)


@settings(max_examples=120, deadline=None)
@given(typed_maps())
def test_pq_of_a_type_is_pq_of_the_maps_restricted_to_it(case):
    maps, types = case
    found = type_tally(overlap_table(*maps), *types).types
    for c in range(1, 4):
        true_map, pred_map = (restricted(m, t, c) for m, t in zip(maps, types, strict=True))
        if not (true_map.any() or pred_map.any()):
            assert c not in found
            continue
        assert found[c].pq == pytest.approx(score(true_map, pred_map).pq, rel=1e-12)
    assert 0 not in found


@settings(max_examples=120, deadline=None)
@given(typed_maps(), st.sampled_from([2.0, 12.0]))
def test_f1_of_a_type_by_counting_nuclei_one_by_one(case, radius):
    maps, (true_types, pred_types) = case
    table = overlap_table(*maps)
    partner = dict(zip(*paired_centroids(table.true_centroids, table.pred_centroids, radius), strict=True))
    found = type_tally(table, true_types, pred_types, radius)
    for c, item in found.types.items():
        tp = fp = fn = 0
        for t, true_type in enumerate(true_types):
            if t in partner:
                pred_type = pred_types[partner[t]]
                tp += 2 * (true_type == c == pred_type)
                fp += 2 * (pred_type == c != true_type)
                fn += 2 * (true_type == c != pred_type)
            else:
                fn += true_type == c
        fp += sum(pred_type == c for p, pred_type in enumerate(pred_types) if p not in partner.values())
        assert item.f1 == pytest.approx(tp / (tp + fp + fn))
    assert found.paired == len(partner)
    assert found.right == sum(true_types[t] == pred_types[p] for t, p in partner.items())


def test_by_hand():
    """Two nuclei found, one of them called wrongly; one missed; one made up."""
    true_map = np.array([[1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 3, 3, 3, 0, 0, 0, 0, 0]])
    pred_map = np.array([[1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4]])
    true_types, pred_types = np.array([1, 1, 2]), np.array([1, 2, 2])
    found = type_tally(overlap_table(true_map, pred_map), true_types, pred_types, radius=1.0)
    one, two = found.types[1], found.types[2]
    assert (one.agree, one.claimed, one.denied, one.missed, one.spurious) == (1, 0, 1, 0, 0)
    assert (two.agree, two.claimed, two.denied, two.missed, two.spurious) == (0, 1, 0, 1, 1)
    assert one.f1 == 2 / (2 + 2)
    assert two.f1 == 0.0
    assert one.pq == pytest.approx(2 / 3, rel=2e-6)
    assert found.accuracy == 0.5
    assert found.mpq == pytest.approx(1 / 3, rel=2e-6)


def test_sums_pool_and_unknown_is_none():
    first = TypedTally({1: TypeTally(matched=1, matched_iou=0.8, true_nuclei=1, pred_nuclei=1)}, paired=2, right=1)
    second = TypedTally({2: TypeTally(true_nuclei=3)}, paired=2, right=2)
    total = first + second
    assert list(total.types) == [1, 2]
    assert total.accuracy == 0.75
    assert total.mpq == (0.8 / (1 + 1e-6) + 0.0) / 2
    empty = sum([], TypedTally())
    assert (empty.mpq, empty.accuracy, TypeTally().pq, TypeTally().f1) == (None, None, None, None)


def test_maps_without_nuclei():
    none = np.zeros(0, np.int64)
    empty = np.zeros((3, 3), int)
    assert type_tally(overlap_table(empty, empty), none, none).types == {}
    found = type_tally(overlap_table(np.eye(3, dtype=int), empty), np.array([2]), none)
    assert (found.types[2].missed, found.types[2].pq, found.types[2].f1) == (1, 0.0, 0.0)
