import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hovernet_cyclic.core.comparison import (
    SCORE_NAMES,
    bootstrap_mean,
    paired_difference,
    score_pairs,
)
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.metrics import score
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
    maps = (np.roll(values, columns, axis=1) for values in (annotation.inst_map, annotation.type_map))
    return Annotation(annotation.tile_id, *maps)


TRUTH = [scattered(seed) for seed in range(5)]


def test_each_image_scores_as_it_does_alone():
    table = score_pairs((true, moved(true, 1)) for true in TRUTH)
    assert table.tile_ids == tuple(true.tile_id for true in TRUTH)
    for row, true in zip(table.values, TRUTH, strict=True):
        assert tuple(row) == tuple(score(true.inst_map, moved(true, 1).inst_map).as_dict().values())
    assert table.typed == ()


def test_pooled_scores_weigh_images_by_their_nuclei():
    full, empty = TRUTH[0], Annotation("empty", np.zeros((40, 40), np.int32))
    table = score_pairs([(full, full), (empty, empty), (full, empty)])
    dice = SCORE_NAMES.index("dice")
    assert table.values[:, dice].tolist() == [1.0, 1.0, 0.0]
    assert table.pooled.dice == 2 / 3
    assert table.interval().mean[dice] == pytest.approx(2 / 3)


def test_interval_is_repeatable_holds_the_mean_and_narrows_with_images():
    values = np.random.default_rng(0).random((200, 3))
    wide, narrow = bootstrap_mean(values[:10], seed=1), bootstrap_mean(values, seed=1)
    for interval in (wide, narrow):
        assert (interval.low < interval.mean).all() and (interval.mean < interval.high).all()
    assert (narrow.high - narrow.low < wide.high - wide.low).all()
    np.testing.assert_array_equal(bootstrap_mean(values, seed=1).low, narrow.low)
    assert (bootstrap_mean(values, seed=2).low != narrow.low).any()
    # The mean of n values in [0, 1] spreads by their deviation over sqrt(n).
    np.testing.assert_allclose(narrow.high - narrow.low, 2 * 1.96 * values.std(0) / 200**0.5, rtol=0.15)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_interval_stays_within_the_values(column):
    interval = bootstrap_mean(np.array(column)[:, None], resamples=200)
    if len(column) == 1:
        assert interval.mean[0] == column[0] and np.isnan([interval.low, interval.high]).all()
    else:
        assert min(column) - 1e-9 <= interval.low[0] <= interval.high[0] <= max(column) + 1e-9


def test_interval_needs_an_image():
    with pytest.raises(ValueError, match="no image"):
        score_pairs([]).interval()


def test_difference_is_paired():
    """Two predictions that differ little on each image, while images differ much: pairing shows it."""
    near = score_pairs((true, moved(true, 1)) for true in TRUTH)
    far = score_pairs((true, moved(true, 2)) for true in TRUTH)
    difference = paired_difference(near, far)
    np.testing.assert_allclose(difference.mean, near.values.mean(0) - far.values.mean(0))
    assert difference.low[SCORE_NAMES.index("iou")] > 0
    same = paired_difference(near, near)
    assert not same.mean.any() and not same.low.any() and not same.high.any()
    with pytest.raises(ValueError, match="same images"):
        paired_difference(near, score_pairs([(TRUTH[0], TRUTH[0])]))


def test_types_are_scored_on_request():
    table = score_pairs(((true, true) for true in TRUTH), with_types=True)
    assert set(table.typed_total.types) == {1, 2} and len(table.typed) == len(TRUTH)


def test_unlike_shapes_and_missing_types_are_refused_by_name():
    small = Annotation("small", np.zeros((3, 4), np.int32))
    with pytest.raises(DatasetError, match=r"'tile_0' has 40 x 40 px but its prediction 'small' has 3 x 4"):
        score_pairs([(TRUTH[0], small)])
    with pytest.raises(DatasetError, match="'small' carries no nucleus types"):
        score_pairs([(small, small)], with_types=True)
