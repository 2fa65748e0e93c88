import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from hovernet_cyclic.core.metrics import (
    Tally,
    overlap_table,
    paired_centroids,
    score,
    sum_tallies,
    tally,
)

GOLDEN = Path(os.environ.get("HOVERNET_CYCLIC_GOLDEN", Path(__file__).parents[4] / "shared" / "golden"))


@st.composite
def pairs_of_maps(draw):
    """Two label maps of one shape, ids with gaps; drawn as blocks so that overlaps of all kinds turn up."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    maps = []
    for _ in range(2):
        inst_map = np.zeros(shape, np.int32)
        for inst_id in draw(st.lists(st.sampled_from([1, 2, 3, 7, 8, 40]), max_size=6, unique=True)):
            top, left = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
            inst_map[top : top + draw(st.integers(1, 6)), left : left + draw(st.integers(1, 6))] = inst_id
        maps.append(inst_map)
    return tuple(maps)


def masks_of(inst_map):
    return [inst_map == inst_id for inst_id in np.unique(inst_map) if inst_id]


def brute_force(true_map, pred_map):
    """Every score from the definitions, on dense masks; for maps with nuclei in both."""
    true, pred = masks_of(true_map), masks_of(pred_map)
    inter = np.array([[(t & p).sum() for p in pred] for t in true], float)
    union = np.array([[(t | p).sum() for p in pred] for t in true], float)
    soft, iou = inter / (union + 1e-6), inter / union
    met = inter > 0

    def aggregate(pairs):
        left_true = set(range(len(true))) - {t for t, _ in pairs}
        left_pred = set(range(len(pred))) - {p for _, p in pairs}
        lone = sum(true[t].sum() for t in left_true) + sum(pred[p].sum() for p in left_pred)
        return sum(inter[pair] for pair in pairs) / (sum(union[pair] for pair in pairs) + lone)

    greedy = [(t, int(soft[t].argmax())) for t in range(len(true)) if met[t].any()]
    exclusive = [(t, p) for t, p in zip(*linear_sum_assignment(-soft), strict=True) if met[t, p]]
    hits = iou[iou > 0.5]
    dq = len(hits) / (len(hits) + 0.5 * (len(pred) - len(hits)) + 0.5 * (len(true) - len(hits)))
    sq = hits.sum() / (len(hits) + 1e-6)
    foreground = [true_map > 0, pred_map > 0]
    common = (foreground[0] & foreground[1]).sum()
    return {
        "dice": 2 * common / (foreground[0].sum() + foreground[1].sum()),
        "dice2": 2 * inter[met].sum() / (inter + union)[met].sum() if met.any() else 0.0,
        "aji": aggregate(greedy),
        "aji_plus": aggregate(exclusive),
        "dq": dq,
        "sq": sq,
        "pq": dq * sq,
        "iou": common / (foreground[0] | foreground[1]).sum(),
    }


@settings(max_examples=250, deadline=None)
@given(pairs_of_maps())
def test_scores_equal_brute_force(maps):
    true_map, pred_map = maps
    found = score(true_map, pred_map).as_dict()
    empties = (not true_map.any()) + (not pred_map.any())
    wanted = brute_force(true_map, pred_map) if empties == 0 else dict.fromkeys(found, {1: 0.0, 2: 1.0}.get(empties))
    wanted["f1d"] = found["f1d"]  # equal total distances leave the pairing open: tested by itself below
    assert found == pytest.approx(wanted, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(pairs_of_maps())
def test_scores_do_not_know_the_numbers_or_the_frame(maps):
    """Ids that keep their order, a new background frame and the integer type change nothing."""
    moved = [np.pad(np.where(m > 0, m.astype(np.int64) * 70_000_003, 0), ((1, 3), (2, 0))) for m in maps]
    assert score(*moved).as_dict() == pytest.approx(score(*maps).as_dict(), rel=1e-12)
    assert score(*(m.astype(np.uint16) for m in maps)) == score(*maps)


@settings(max_examples=100, deadline=None)
@given(pairs_of_maps())
def test_scores_are_shares_and_most_are_symmetric(maps):
    forth, back = score(*maps).as_dict(), score(*maps[::-1]).as_dict()
    assert all(0.0 <= value <= 1.0 for value in forth.values())
    for name in ("dice", "dice2", "aji_plus", "dq", "sq", "pq", "iou"):
        assert forth[name] == pytest.approx(back[name], rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(pairs_of_maps(), pairs_of_maps())
def test_pooled_tallies_are_one_large_image(first, second):
    """Two images far apart on one canvas score as their summed tallies (centroids within 2 px, canvas gap of 40)."""
    canvas = np.zeros((2, 80, 80), np.int32)
    for index in range(2):
        height, width = first[index].shape
        canvas[index, :height, :width] = first[index]
        height, width = second[index].shape
        canvas[index, -height:, -width:] = np.where(second[index] > 0, second[index] + 100, 0)
    parts = [tally(overlap_table(*maps), radius=0.0) for maps in (first, second)]
    whole = tally(overlap_table(*canvas), radius=0.0)
    pooled = sum_tallies(parts)
    for name in ("true_pixels", "common_pixels", "dice2_total", "aji_inter", "aji_union", "matched", "pred_nuclei"):
        assert getattr(pooled, name) == getattr(whole, name)
    assert pooled.matched_iou == pytest.approx(whole.matched_iou)
    assert sum_tallies([]) == Tally()


@settings(max_examples=60, deadline=None)
@given(pairs_of_maps())
@example((np.zeros((3, 4), np.int32), np.ones((3, 4), np.int32)))
def test_table_by_brute_force(maps):
    table = overlap_table(*maps)
    wanted = {
        (int(t), int(p)): int(((maps[0] == t) & (maps[1] == p)).sum())
        for t in table.true_ids
        for p in table.pred_ids
        if ((maps[0] == t) & (maps[1] == p)).any()
    }
    found = zip(table.true_ids[table.pair_true], table.pred_ids[table.pair_pred], table.pair_inter, strict=True)
    assert [((int(t), int(p)), int(n)) for t, p, n in found] == sorted(wanted.items())
    for inst_id, centroid in zip(table.true_ids, table.true_centroids, strict=True):
        assert centroid == pytest.approx(np.argwhere(maps[0] == inst_id).mean(0)[::-1])


def test_many_nuclei_are_counted_by_sorting_to_the_same_table(monkeypatch):
    generator = np.random.default_rng(0)
    maps = generator.integers(0, 30, (2, 40, 50))
    counted = tally(overlap_table(*maps))
    monkeypatch.setattr("hovernet_cyclic.core.metrics._DENSE_PAIRS", 0)
    assert tally(overlap_table(*maps)) == counted


def test_one_pair_by_hand():
    true_map, pred_map = np.zeros((4, 8), int), np.zeros((4, 8), int)
    true_map[:, :4] = 5  # 16 px
    pred_map[:, 1:5] = 9  # 16 px, 12 in common, union 20
    found = score(true_map, pred_map)
    assert (found.dice, found.dice2, found.aji, found.aji_plus, found.iou) == (0.75, 0.75, 0.6, 0.6, 0.6)
    assert (found.dq, found.f1d) == (1.0, 1.0)
    assert found.sq == found.pq == 0.6 / (1 + 1e-6)
    assert score(true_map, pred_map, radius=0.99).f1d == 0.0
    assert score(true_map, pred_map, radius=1.0).f1d == 1.0


def test_iou_of_exactly_one_half_is_no_match():
    true_map = np.array([[1, 1, 0]])
    pred_map = np.array([[1, 0, 0]])
    assert score(true_map, pred_map).pq == 0.0


def test_aji_lets_one_prediction_serve_two_nuclei_and_aji_plus_does_not():
    true_map = np.array([[1, 1, 2, 2, 2]])
    pred_map = np.ones((1, 5), int)
    found = score(true_map, pred_map)
    assert found.aji == (2 + 3) / (5 + 5)
    assert found.aji_plus == 3 / (5 + 2)


def test_pairing_is_of_least_total_distance_before_the_radius_is_asked():
    true_points, pred_points = np.array([[0.0, 0.0], [10.0, 0.0]]), np.array([[9.0, 0.0], [30.0, 0.0]])
    rows, columns = paired_centroids(true_points, pred_points, 12.0)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])  # 9 + 20 < 1 + 30
    assert len(paired_centroids(true_points, np.zeros((0, 2)), 12.0)[0]) == 0


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(POINTS, POINTS, st.integers(0, 9))
def test_pairing_has_the_least_total_distance_of_all(first, second, radius):
    true_points, pred_points = np.array(first, float), np.array(second, float)
    short, long = sorted((true_points, pred_points), key=len)
    distance = np.linalg.norm(short[:, None] - long[None], axis=-1)
    orders = itertools.permutations(range(len(long)), len(short))
    totals = [distance[range(len(short)), order].sum() for order in orders]
    rows, columns = paired_centroids(true_points, pred_points, np.inf)
    lengths = np.linalg.norm(true_points[rows] - pred_points[columns], axis=-1)
    assert len(rows) == len(short) == len(set(rows)) == len(set(columns))
    assert lengths.sum() == pytest.approx(min(totals))
    assert len(paired_centroids(true_points, pred_points, radius)[0]) == (lengths <= radius).sum()


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        score(np.zeros((2, 3), int), np.zeros((3, 2), int))


@pytest.mark.parametrize("values", [np.ones((2, 3)), np.ones((2, 3), bool), np.ones((2, 3, 1), int), np.ones(3, int)])
def test_maps_of_other_kinds_are_refused(values):
    for maps in ((values, values), (np.ones((2, 3), int), values)):
        with pytest.raises(ValueError, match="integers"):
            score(*maps)


def golden_cases():
    path = GOLDEN / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else []


@pytest.mark.skipif(not golden_cases(), reason=f"no reference numbers at {GOLDEN}: set HOVERNET_CYCLIC_GOLDEN")
@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: str(case["case"]))
def test_scores_equal_the_reference(case):
    with np.load(GOLDEN / "metrics.npz") as stored:
        found = score(stored[f"true_{case['case']}"], stored[f"pred_{case['case']}"]).as_dict()
    for name, wanted in case.items():
        if name != "case":
            assert found[name] == pytest.approx(wanted, rel=1e-12, abs=1e-15), name
