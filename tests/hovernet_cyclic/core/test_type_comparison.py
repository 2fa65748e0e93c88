import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hovernet_cyclic.core.comparison import score_pairs
from hovernet_cyclic.core.type_comparison import type_difference, type_report, type_values
from hovernet_cyclic.core.type_scores import TypedTally, TypeTally
from hovernet_cyclic.core.types import Annotation


def scattered(seed, size=40):
    """A map of square nuclei and the map of their types."""
    generator = np.random.default_rng(seed)
    inst_map = np.zeros((size, size), np.int32)
    for inst_id in range(1, 9):
        row, column = generator.integers(0, size - 6, 2)
        inst_map[row : row + 6, column : column + 6] = inst_id
    return Annotation(f"tile_{seed}", inst_map, (inst_map % 3).astype(np.uint8))


def moved(annotation, columns):
    """The nuclei shifted, and some of them called another type."""
    inst_map = np.roll(annotation.inst_map, columns, axis=1)
    type_map = np.where(inst_map == 4, 2, inst_map % 3).astype(np.uint8)
    return Annotation(annotation.tile_id, inst_map, type_map)


TRUTH = [scattered(seed) for seed in range(6)]
EMPTY = Annotation("empty", np.zeros((40, 40), np.int32), np.zeros((40, 40), np.uint8))


def table_of(predicted, true=TRUTH):
    return score_pairs(zip(true, predicted, strict=True), with_types=True)


def test_a_perfect_prediction():
    report = type_report(table_of(TRUTH))
    assert set(report["by_type"]) == {"1", "2"}
    assert report["accuracy"] == report["low"]["accuracy"] == 1.0
    assert report["mpq_images"] == pytest.approx(1.0, abs=1e-5)
    assert all(item["f1"] == 1.0 for item in report["by_type"].values())


COUNTS = st.integers(0, 9)
TALLIES = st.builds(
    TypedTally,
    st.dictionaries(st.integers(1, 4), st.builds(TypeTally, COUNTS, st.floats(0, 9), *[COUNTS] * 7), max_size=4),
    st.integers(0, 9),
    st.integers(0, 9),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(TALLIES, min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_values_are_those_of_the_tallies_drawn_and_added(typed, times):
    """Images that are drawn several times count several times; what no image defines is nan."""
    types = [1, 2, 3, 4]
    drawn = [image for image, count in zip(typed, times, strict=False) for _ in range(count)]
    total = sum(drawn, TypedTally())
    known = [image.mpq for image in drawn if image.mpq is not None]
    expected = [sum(known) / len(known) if known else None, total.mpq, total.accuracy]
    for c in types:
        expected += [total.types.get(c, TypeTally()).pq, total.types.get(c, TypeTally()).f1]
    found = type_values(typed, types, np.array([times[: len(typed)]], float))[0]
    assert found == pytest.approx([np.nan if value is None else value for value in expected], nan_ok=True)


def test_each_image_is_told_and_lies_within_reach_of_the_pooled():
    predicted = [moved(true, 1) for true in TRUTH]
    report = type_report(table_of(predicted))
    for true, pred in zip(TRUTH, predicted, strict=True):
        alone = type_report(table_of([pred], [true]))
        image = report["images"][true.tile_id]
        assert image["mpq"] == alone["mpq_pooled"] == pytest.approx(alone["mpq_images"])
        assert image["accuracy"] == alone["accuracy"]
        assert image["by_type"] == {
            c: {name: row[name] for name in ("pq", "f1")} for c, row in alone["by_type"].items()
        }
        assert alone["low"]["mpq_pooled"] is None, "one image has no interval"
    for name in ("mpq_images", "mpq_pooled", "accuracy"):
        assert report["low"][name] <= report[name] <= report["high"][name]
    for c, row in report["by_type"].items():
        assert report["low"]["by_type"][c]["f1"] <= row["f1"] <= report["high"]["by_type"][c]["f1"]


def test_the_seed_decides_the_interval():
    table = table_of([moved(true, 1) for true in TRUTH])
    assert type_report(table, 1, 50) == type_report(table, 1, 50)
    assert type_report(table, 1, 50)["low"] != type_report(table, 2, 50)["low"]


def test_difference_is_paired_and_of_the_same_draws():
    near, far = table_of([moved(true, 1) for true in TRUTH]), table_of([moved(true, 2) for true in TRUTH])
    first, second, found = type_report(near), type_report(far), type_difference(near, far)
    for name in ("mpq_images", "mpq_pooled", "accuracy"):
        assert found["mean"][name] == pytest.approx(first[name] - second[name])
    assert found["mean"]["by_type"]["1"]["pq"] == first["by_type"]["1"]["pq"] - second["by_type"]["1"]["pq"]
    assert 0 < found["low"]["mpq_pooled"] <= found["high"]["mpq_pooled"]
    same = type_difference(near, near)
    assert same["low"]["by_type"] == same["high"]["by_type"] == {c: {"pq": 0, "f1": 0} for c in ("1", "2")}
    with pytest.raises(ValueError, match="same images"):
        type_difference(near, table_of(TRUTH[:1], TRUTH[:1]))


def test_images_without_nuclei_are_defined():
    report = type_report(table_of([EMPTY] * 3, [EMPTY] * 3))
    assert report["by_type"] == {} and report["mpq_images"] is report["accuracy"] is report["low"]["mpq_pooled"] is None
    assert report["images"] == {"empty": {"mpq": None, "accuracy": None, "by_type": {}}}
    missed = type_report(table_of([EMPTY] * 2, TRUTH[:2]))
    assert missed["mpq_images"] == missed["mpq_pooled"] == 0.0 and missed["accuracy"] is None
    assert missed["by_type"]["1"] == {
        "pq": 0.0,
        "f1": 0.0,
        "true_nuclei": missed["by_type"]["1"]["true_nuclei"],
        "pred_nuclei": 0,
    }
