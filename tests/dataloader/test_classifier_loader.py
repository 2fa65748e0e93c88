"""Batches of image-level patches."""

from collections import Counter

import numpy as np
import pytest

from dataloader.classifier_loader import PatchSampler, fit_to_shape, split_by_group
from dataloader.stain import haematoxylin
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import LabelledPatch


class Patches:
    """A TileSource of flat patches: (label, shape, group) of each; a patch's grey value is its index."""

    def __init__(self, *patches):
        self._patches = patches
        self.patch_labels = np.array([[label] for label, _, _ in patches], np.float32)
        self.patch_shapes = [shape for _, shape, _ in patches]
        self.patch_groups = [group for _, _, group in patches]
        self.read = []

    def read_patch(self, index):
        self.read.append(index)
        image = np.full((*self.patch_shapes[index], 3), 100 + index, np.uint8)
        return LabelledPatch(str(index), image, self.patch_labels[index])


def many(groups, per_group=4, shape=(16, 16)):
    return Patches(*((i % 2, shape, f"g{g}") for g in range(groups) for i in range(per_group)))


def test_a_batch_depends_on_seed_and_step_alone():
    source = many(6)
    first = PatchSampler(source, range(24), 8, seed=1)
    expected = [first.batch(step) for step in range(4)]
    again = PatchSampler(source, range(24), 8, seed=1)
    for step in (3, 0, 2, 1):
        for one, other in zip(expected[step], again.batch(step), strict=True):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(expected[0].images, expected[1].images)
    assert not np.array_equal(expected[0].images, PatchSampler(source, range(24), 8, seed=2).batch(0).images)


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_half_of_a_batch_is_positive(batch_size):
    batch = PatchSampler(many(6), range(24), batch_size, seed=0).batch(0)
    assert batch.images.shape == (batch_size, 16, 16, 3) and batch.images.dtype == np.uint8
    assert batch.labels.shape == (batch_size, 1) and batch.labels.dtype == np.float32
    assert batch.labels.sum() == batch_size // 2
    stain = np.stack([haematoxylin(image) for image in batch.images])
    np.testing.assert_array_equal(batch.stain, stain)


def test_labels_are_those_of_the_patches_drawn_and_only_of_the_indices_given():
    source = many(6)
    allowed = list(range(0, 12))
    sampler = PatchSampler(source, allowed, 8, seed=0)
    for step in range(20):
        source.read.clear()
        batch = sampler.batch(step)
        assert set(source.read) <= set(allowed)
        np.testing.assert_array_equal(batch.labels, source.patch_labels[source.read])


def test_a_rich_image_does_not_rule():
    """One image has 90 positive patches, nine have one each: each is drawn about as often."""
    rich = [(1, (8, 8), "rich")] * 90 + [(1, (8, 8), f"poor{i}") for i in range(9)] + [(0, (8, 8), "bare")] * 3
    source = Patches(*rich)
    sampler = PatchSampler(source, range(len(rich)), 20, seed=0)
    for step in range(20):
        sampler.batch(step)
    drawn = Counter(source.patch_groups[i] for i in source.read)
    assert 5 <= drawn["rich"] <= 40 and sum(drawn[f"poor{i}"] > 0 for i in range(9)) == 9


def test_sizes_may_be_mixed():
    """A batch has the shape of its positives, at a multiple of 8; negatives are cropped or mirrored to it."""
    source = Patches(
        (1, (16, 16), "a"),
        (1, (20, 36), "b"),
        (1, (5, 7), "c"),
        (0, (12, 50), "d"),
        (0, (3, 3), "e"),
        (0, (40, 40), "f"),
    )
    sampler = PatchSampler(source, range(6), 4, seed=0)
    shapes = Counter()
    for step in range(40):
        source.read.clear()
        batch = sampler.batch(step)
        (shape,) = {source.patch_shapes[i] for i in source.read[:2]}
        assert batch.images.shape[1:3] == (-(-shape[0] // 8) * 8, -(-shape[1] // 8) * 8)
        assert batch.images.min() > 0, "mirrored, never filled with black"
        shapes[shape] += 1
    assert set(shapes) == {(16, 16), (20, 36), (5, 7)}


@pytest.mark.parametrize("wanted", [(4, 4), (8, 30), (23, 9), (50, 50)])
def test_fit_to_shape_shows_pixels_of_the_image_alone(wanted):
    image = np.random.default_rng(0).integers(1, 255, (13, 17, 3), dtype=np.uint8)
    fitted = fit_to_shape(image, wanted, np.random.default_rng(1))
    assert fitted.shape == (*wanted, 3)
    known = {tuple(pixel) for pixel in image.reshape(-1, 3)}
    assert {tuple(pixel) for pixel in fitted.reshape(-1, 3)} <= known


def test_a_group_is_never_on_both_sides():
    source = many(20)
    train, held = split_by_group(source, 0.15, seed=3)
    assert sorted([*train, *held]) == list(range(80))
    groups = [{source.patch_groups[i] for i in side} for side in (train, held)]
    assert not groups[0] & groups[1] and len(groups[1]) == 3
    assert split_by_group(source, 0.15, seed=3) == (train, held)
    assert split_by_group(source, 0.15, seed=4)[1] != held


@pytest.mark.parametrize(("groups", "held_out"), [(1, 0), (3, 0), (4, 1), (10, 2)])
def test_few_groups_may_leave_none_to_hold_out(groups, held_out):
    source = many(groups)
    _, held = split_by_group(source, 0.15, seed=0)
    assert len({source.patch_groups[i] for i in held}) == held_out


def test_a_label_that_only_held_out_groups_have_is_an_error():
    source = Patches((1, (8, 8), "a"), (0, (8, 8), "b"))
    with pytest.raises(DatasetError, match=r"^No (positive|negative) patch is left to train on: .*\.$"):
        split_by_group(source, 0.5, seed=0)
    with pytest.raises(DatasetError, match="No negative patch"):
        split_by_group(Patches((1, (8, 8), "a")), 0.15, seed=0)
