"""Pseudo masks that are nothing to learn from are found out, and so is a batch that training goes astray on."""

import dataclasses

import numpy as np
import pytest

from dataloader.classifier_loader import PatchBatch
from dataloader.train_loader import TileBatch
from hovernet_cyclic.core.types import HoVerTargets, PseudoMask
from hovernet_cyclic.training.guards import MaskCount, collapse_of, count_masks, save_batch

SOUND = MaskCount(nuclei=400, area=0.25, covered=0.2)


def test_masks_are_counted_by_hand_arithmetic():
    inst_map = np.zeros((100, 200), np.int32)
    inst_map[:10, :10], inst_map[:10, 20:30] = 1, 2
    trusted = np.zeros((100, 200), bool)
    trusted[:20], trusted[:10, 20:30] = True, False
    mask = PseudoMask("t", 1, inst_map, trusted, np.array([0.5, 0.9], np.float32))
    count = count_masks([mask, mask], mpp=0.5)
    assert count.nuclei == 4
    assert count.area == pytest.approx(0.05 * 0.1 * 2)
    assert count.covered == pytest.approx(100 / (20 * 200 - 100))
    untaught = dataclasses.replace(mask, trusted=np.zeros_like(trusted))
    assert count_masks([untaught], mpp=0.5).covered == 0


@pytest.mark.parametrize(
    ("changes", "before", "words"),
    [
        ({}, None, ""),
        ({}, 90, ""),
        ({}, 4000, ""),
        ({}, 0, ""),
        ({"nuclei": 0, "covered": 0.0}, 400, "no nucleus"),
        ({"nuclei": 1, "covered": 5e-5}, None, "all is background: nuclei cover 0.005%"),
        ({"covered": 0.95}, None, "all is nucleus: nuclei cover 95%"),
        ({"nuclei": 8000}, None, "32000 nuclei per mm2"),
        ({}, 79, "400 nuclei, after 79"),
    ],
)
def test_a_collapse_is_told_in_words(changes, before, words):
    found = collapse_of(SOUND._replace(**changes), before)
    assert (words in found) if words else (found == "")


def test_a_batch_of_patches_is_kept_for_inspection(tmp_path):
    batch = PatchBatch(np.ones((2, 8, 8, 3), np.float32), np.zeros((2, 1), np.float32), np.zeros((2, 8, 8), np.float32))
    save_batch(tmp_path / "bad_batch.npz", "cycle 1 front end, step 3", batch)
    with np.load(tmp_path / "bad_batch.npz") as stored:
        assert str(stored["where"]) == "cycle 1 front end, step 3"
        for name in batch._fields:
            np.testing.assert_array_equal(stored[name], getattr(batch, name))
    assert [path.name for path in tmp_path.iterdir()] == ["bad_batch.npz"]


def test_a_batch_of_tiles_is_kept_with_its_targets(tmp_path):
    targets = [
        HoVerTargets(np.full((4, 4), i), np.full((4, 4, 2), i, np.float32), None, np.ones((4, 4), bool)) for i in (0, 1)
    ]
    images = np.zeros((2, 8, 8, 3), np.float32)
    save_batch(tmp_path / "bad_batch.npz", "here", TileBatch(images, images + 1, targets))
    with np.load(tmp_path / "bad_batch.npz") as stored:
        assert set(stored.files) == {"where", "images", "plain_images", "np_map", "hv_map", "trusted"}
        assert stored["np_map"].shape == (2, 4, 4) and stored["hv_map"][1].min() == 1
