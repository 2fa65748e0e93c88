"""The score that needs no masks."""

import numpy as np
import pytest

from hovernet_cyclic.core.settings import DataSettings, NetSettings, TrainRecipe
from hovernet_cyclic.core.types import LabelledPatch, RawMaps
from hovernet_cyclic.training import patch_score
from hovernet_cyclic.training.patch_score import PatchScore, _convex, score_on_patches


class Oracle:
    """A segmenter that sees as many nuclei as the patch's grey value says."""

    def raw_maps(self, image):
        np_prob = np.zeros(image.shape[:2], np.float32)
        for i in range(int(image[0, 0, 0])):
            np_prob[4:12, 4 + 16 * i : 12 + 16 * i] = 0.9
        return RawMaps(np_prob, np.zeros((*image.shape[:2], 2), np.float32))


class Patches:
    """(label, nuclei that the oracle will see) of each patch of 16 x 50 px."""

    def __init__(self, *patches):
        self.patch_labels = np.array([[label] for label, _ in patches], np.float32)
        self._seen = [seen for _, seen in patches]
        self.asked = []

    def read_patch(self, index):
        self.asked.append(index)
        return LabelledPatch(str(index), np.full((16, 50, 3), self._seen[index], np.uint8), self.patch_labels[index])


def score(source, indices=None, seed=0):
    recipe = TrainRecipe("test", DataSettings("folder"), net=NetSettings(smallest_um2=0.0), seed=seed)
    return score_on_patches(Oracle(), source, range(len(source.patch_labels)) if indices is None else indices, recipe)


def test_shares_and_counts_by_hand():
    """Two of three positive patches have a nucleus; one of four negative ones is spoilt, by three nuclei."""
    source = Patches((1, 1), (1, 2), (1, 0), (0, 0), (0, 0), (0, 0), (0, 3))
    found = score(source)
    mm2 = 16 * 50 * 0.25**2 / 1e6
    # squares are convex: each counts as 1
    assert found == PatchScore(pytest.approx(2 / 3), 0.75, pytest.approx(3 / (3 * mm2)), pytest.approx(3 / (4 * mm2)))
    assert found.surplus == pytest.approx((1 - 0.75) / mm2)


def test_shattered_nuclei_count_little():
    """A comb is half of its convex hull: it is no nucleus. One square beside it is."""
    inst_map = np.zeros((40, 60), np.int32)
    inst_map[5:25, 5:25] = 1
    inst_map[5:25:2, 35:55] = 2
    inst_map[5:25, 35:37] = 2
    recipe = TrainRecipe("test", DataSettings("folder"))
    assert _convex(inst_map, recipe) == pytest.approx(1)
    assert _convex(np.zeros((5, 5), np.int32), recipe) == 0


def test_only_the_given_patches_count():
    assert score(Patches((1, 1), (1, 0), (0, 3), (0, 0)), [0, 3]) == PatchScore(
        1.0, 1.0, pytest.approx(1e6 / (16 * 50 * 0.25**2)), 0.0
    )


def test_what_is_not_there_is_not_judged():
    positives, negatives, none = score(Patches((1, 1), (1, 0))), score(Patches((0, 0))), score(Patches((1, 1)), [])
    assert positives.recall == 0.5 and positives.found > 0
    assert np.isnan([positives.specificity, positives.false, positives.surplus]).all()
    assert negatives.specificity == 1 and np.isnan([negatives.recall, negatives.found, negatives.surplus]).all()
    assert np.isnan([*none, none.surplus]).all()


def test_at_most_so_many_of_each_label_and_the_same_for_a_seed(monkeypatch):
    monkeypatch.setattr(patch_score, "MOST_PATCHES", 5)
    source = Patches(*((i % 2, 1) for i in range(40)))
    asked = []
    for seed in (1, 1, 2):
        source.asked.clear()
        score(source, seed=seed)
        labels = source.patch_labels[source.asked, 0]
        assert len(labels) == 10 and labels.sum() == 5
        asked.append(list(source.asked))
    assert asked[0] == asked[1] != asked[2]
