"""Batches of the back end: crops of tiles, and canvases of negative patches."""

import dataclasses
import threading

import numpy as np
import pytest

import dataloader.train_loader as train_loader
from dataloader.augs import LabelledTile
from dataloader.copy_paste import Cutout
from dataloader.train_loader import TileSampler, prefetch
from hovernet_cyclic.core.settings import BackEndSettings
from hovernet_cyclic.core.types import LabelledPatch

SETTINGS = BackEndSettings(batch_size=4, negatives_per_batch=2)
SHAPES = (72, 72), (8, 8)
NEGATIVE = 200  # grey value of every negative patch


class Negatives:
    """The part of a TileSource that canvases need. Patches 0 to 2 are negative, of several sizes; 3 is positive."""

    shapes = ((24, 24), (17, 40), (90, 11), (24, 24))

    def read_patch(self, index):
        assert index < 3, "a positive patch was asked for"
        return LabelledPatch(str(index), np.full((*self.shapes[index], 3), NEGATIVE, np.uint8), np.zeros(1, np.float32))


def tile(shape, value=90):
    """A tile of one grey, with a square nucleus in its middle."""
    inst_map = np.zeros(shape, np.int32)
    inst_map[shape[0] // 2 - 6 : shape[0] // 2 + 6, shape[1] // 2 - 6 : shape[1] // 2 + 6] = 1
    return LabelledTile(np.full((*shape, 3), value, np.uint8), inst_map, np.ones(shape, bool))


def sampler(tiles=None, seed=0, negatives=(0, 1, 2), shapes=SHAPES, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return TileSampler(tiles or [tile((100, 90))], (Negatives(), list(negatives)), shapes, settings, seed)


def assert_equal(one, other):
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.plain_images, other.plain_images)
    for mine, theirs in zip(one.targets, other.targets, strict=True):
        for name in ("np_map", "hv_map", "trusted"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_a_batch_depends_on_seed_and_step_alone():
    first, again = sampler(seed=1), sampler(seed=1)
    expected = [first.batch(step) for step in range(3)]
    for step in (2, 0, 1):
        assert_equal(expected[step], again.batch(step))
    assert not np.array_equal(expected[0].images, expected[1].images)
    assert not np.array_equal(expected[0].images, sampler(seed=2).batch(0).images)


def test_shapes_and_types():
    batch = sampler().batch(0)
    assert batch.images.shape == batch.plain_images.shape == (4, 72, 72, 3)
    assert batch.images.dtype == batch.plain_images.dtype == np.uint8
    assert len(batch.targets) == 4
    for target in batch.targets:
        assert target.np_map.shape == target.trusted.shape == (8, 8) and target.hv_map.shape == (8, 8, 2)


def test_student_and_teacher_see_one_geometry():
    """The same pixels, coloured otherwise: an edge in one lies where it lies in the other."""
    halves = tile((72, 72))
    halves.image[:, :36] = 230
    batch = sampler([halves], negatives_per_batch=0).batch(0)
    for student, teacher in zip(batch.images.mean(-1), batch.plain_images.mean(-1), strict=True):
        bright = teacher > 160
        assert student[bright].mean() > student[~bright].mean() + 50
        assert set(np.unique(teacher)) >= {90.0, 230.0}, "the teacher's colours are the tile's own"


def test_canvases_are_negative_patches_alone_background_and_trusted_before_they_are_augmented(monkeypatch):
    seen = []
    honest = train_loader.augment_geometry
    monkeypatch.setattr(train_loader, "augment_geometry", lambda tile, rng: seen.append(tile) or honest(tile, rng))
    loader = sampler(shapes=((128, 96), (64, 32)), tiles=[tile((160, 160))])
    for step in range(3):
        loader.batch(step)
    canvases = [shown for shown in seen if shown.image[0, 0, 0] == NEGATIVE]
    assert len(canvases) == 6 and len(seen) == 12
    for canvas in canvases:
        assert canvas.image.shape == (128, 96, 3) and np.all(canvas.image == NEGATIVE), "filled to the last pixel"
        assert not canvas.inst_map.any() and canvas.inst_map.dtype == np.int32
        assert canvas.trusted.all() and canvas.trusted.dtype == bool


def test_without_negatives_the_batch_is_crops():
    assert len(sampler(negatives=()).batch(0).targets) == 4
    batch = sampler(negatives_per_batch=0).batch(0)
    assert batch.images.shape[0] == 4 and np.all(batch.plain_images == 90)


@pytest.mark.parametrize("shape", [(72, 72), (40, 100), (20, 20), (100, 30)])
def test_tiles_may_be_smaller_than_the_crop(shape, monkeypatch):
    """What is mirrored beyond a tile's edge is shown, but nothing is said about it."""
    monkeypatch.setattr(train_loader, "augment_geometry", lambda tile, rng: tile)
    batch = sampler([tile(shape)], negatives_per_batch=0, shapes=((72, 72), (72, 72))).batch(0)
    for target, image in zip(batch.targets, batch.plain_images, strict=True):
        assert np.all(image == 90)
        assert target.trusted.sum() == min(shape[0], 72) * min(shape[1], 72)
        assert target.np_map.sum() in (0, 144) or max(shape) > 72
        assert not target.np_map[~target.trusted].any()


def test_tiles_of_different_sizes_are_all_drawn():
    batches = [sampler([tile((100, 90), 60), tile((80, 120), 120)], negatives_per_batch=0).batch(s) for s in range(5)]
    assert {60.0, 120.0} <= set(np.unique([batch.plain_images for batch in batches]))


def test_prefetch_keeps_the_order_and_makes_each_once():
    made = []

    def make(step):
        made.append((step, threading.current_thread() is threading.main_thread()))
        return step * 10

    assert list(prefetch(make, range(3, 7))) == [30, 40, 50, 60]
    assert made == [(step, False) for step in range(3, 7)]
    assert list(prefetch(make, range(0))) == []


def test_prefetch_hands_on_what_went_wrong():
    def make(step):
        if step == 2:
            raise ValueError("the third")
        return step

    batches = prefetch(make, range(5))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(batches)


def greys(batch):
    return [float(np.median(image)) for image in batch.plain_images]


@pytest.mark.parametrize(("share", "negatives"), [(1, 0), (1, 2), (2, 1), (3, 1), (9, 1)])
def test_drawn_tiles_have_a_fixed_share_of_each_batch(share, negatives):
    """However many others there are; a share that does not fit leaves the canvases their place."""
    others, drawn = [tile((80, 80), 60) for _ in range(30)], [tile((80, 80), 140)]
    changes = {"negatives_per_batch": negatives, "annotated_per_batch": share}
    settings = dataclasses.replace(SETTINGS, **changes)
    loader = TileSampler(others, (Negatives(), [0, 1, 2][: 3 if negatives else 0]), SHAPES, settings, 0, drawn)
    for step in range(4):
        shown = greys(loader.batch(step))
        expected = min(share, 4 - negatives)
        assert shown.count(140.0) == expected and shown.count(60.0) == 4 - negatives - expected
        assert shown.count(float(NEGATIVE)) == negatives


def test_drawn_tiles_alone_fill_the_batch_and_none_at_all_is_refused():
    settings = dataclasses.replace(SETTINGS, annotated_per_batch=1)
    loader = TileSampler([], (None, ()), SHAPES, settings, 0, [tile((80, 80), 140)])
    assert greys(loader.batch(0)) == [140.0] * 4
    with pytest.raises(ValueError, match="no tile"):
        TileSampler([], (None, ()), SHAPES, settings, 0)


def test_without_drawn_tiles_the_batches_are_those_of_before():
    assert_equal(sampler(annotated_per_batch=3).batch(5), sampler(annotated_per_batch=0).batch(5))


def test_types_reach_the_targets_where_a_tile_has_them(monkeypatch):
    monkeypatch.setattr(train_loader, "augment_geometry", lambda tile, rng: tile)
    plain = tile((40, 40))
    typed = plain._replace(type_map=(plain.inst_map * 3).astype(np.uint8))
    shapes = (72, 72), (72, 72)
    loader = TileSampler([plain], (Negatives(), [0]), shapes, SETTINGS, 0, [typed])
    without, typed_target, *canvases = loader.batch(0).targets
    assert without.type_map is None
    np.testing.assert_array_equal(typed_target.type_map, 3 * typed_target.np_map)
    assert typed_target.type_map.dtype == np.int64 and typed_target.type_map.shape == (72, 72)
    for canvas in canvases:
        assert not canvas.type_map.any(), "a canvas is background beyond doubt"


def test_sure_nuclei_are_pasted_on_crops_and_canvases_alone_of_their_share():
    """With a share of 1 every crop and canvas gets some; drawn tiles, and a share of 0, stay as they are."""
    spot = Cutout(np.full((9, 9, 3), 7, np.uint8), np.ones((9, 9), bool))
    bare = LabelledTile(np.full((90, 90, 3), 200, np.uint8), np.zeros((90, 90), np.int32), np.ones((90, 90), bool))
    nuclei = {}
    for share in (0.0, 1.0):
        how = dataclasses.replace(SETTINGS, paste_share=share, most_pasted=99, annotated_per_batch=1)
        loader = TileSampler([bare], (Negatives(), [0, 1, 2]), SHAPES, how, 0, [bare], [[spot]])
        nuclei[share] = [[t.np_map.any() for t in loader.batch(step).targets] for step in range(12)]
    assert not np.any(nuclei[0.0])
    crop, drawn, *canvases = np.mean(nuclei[1.0], axis=0)
    assert crop > 0.5 and min(canvases) > 0.5 and drawn == 0
