"""Batches that other processes make are those that a thread makes."""

import multiprocessing
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dataloader.augs import LabelledTile
from dataloader.classifier_loader import PatchSampler
from dataloader.copy_paste import cut_out
from dataloader.datasets.folder import open_folder
from dataloader.train_loader import TileSampler
from dataloader.workers import _freeze, _thaw, made_ahead
from hovernet_cyclic.core.errors import DatasetError, RecipeError
from hovernet_cyclic.core.settings import BackEndSettings, DataSettings

SETTINGS = BackEndSettings(batch_size=5, negatives_per_batch=2, paste_share=1.0)
STEPS = range(3, 8)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    """Other tests, and trainings on this machine, leave theirs elsewhere."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def samplers(own_data):
    source = open_folder(DataSettings("folder"), own_data).train
    tiles = []
    for index in range(2):
        image = source.read_tile(index).image
        inst_map = np.kron(np.arange(16).reshape(4, 4), np.ones((32, 32), np.int32)).astype(np.int32)
        tiles.append(LabelledTile(image, inst_map, inst_map > 3))
    cutouts = [cut_out(tile.image, tile.inst_map, [1, 5]) for tile in tiles]
    negatives = [index for index, label in enumerate(source.patch_labels[:, 0]) if label == 0]
    shapes = (96, 96), (32, 32)
    return (
        TileSampler(tiles, (source, negatives), shapes, SETTINGS, 7, tiles[1:], cutouts),
        PatchSampler(source, range(len(source.patch_labels)), 6, 7),
    )


def flat(batch):
    for part in batch:
        for array in part if isinstance(part, list) else [part]:
            yield from (vars(array).values() if hasattr(array, "hv_map") else [array])


def same(one, other):
    for mine, theirs in zip(flat(one), flat(other), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def nobody_stays():
    assert not multiprocessing.active_children()
    assert not list(Path(tempfile.gettempdir()).glob("hovernet_cyclic_*"))


def test_any_number_of_workers_makes_the_same_batches_in_order(samplers):
    tiles, patches = samplers
    for make, workers in ((partial(tiles.batch, rows=[4, 0, 2]), 2), (patches.batch, 1)):
        expected = [make(step) for step in STEPS]
        for count in (0, workers):
            for made, wanted in zip(made_ahead(make, STEPS, count), expected, strict=True):
                same(made, wanted)
    nobody_stays()
    assert list(made_ahead(tiles.batch, range(3, 3), 2)) == []


def test_arrays_are_handed_on_in_one_file_and_may_be_changed_in_private(samplers, tmp_path):
    tiles, _ = samplers
    with (tmp_path / "file").open("wb") as file:
        head, name, sizes = _freeze(tiles.batch, file)
    assert sum(sizes) > 2 * 128 * 128 * 8 and len(head) < 20_000, "no pixel travels through the pipe"
    before = Path(name).read_bytes()
    again = _thaw((head, name, sizes))
    same(again(3), tiles.batch(3))
    again.__self__._tiles[0].image[:] = 0
    assert Path(name).read_bytes() == before


def test_a_file_that_cannot_be_read_is_named_as_it_is_without_workers(samplers, own_data):
    tiles, _ = samplers
    for path in (own_data / "patches" / "negative").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"^\S*/patches/negative/\S* is an empty file: copy or export it again\.$"):
        next(made_ahead(tiles.batch, STEPS, 1))
    nobody_stays()


def test_a_worker_that_dies_is_told_of_in_a_sentence_and_the_others_end():
    with pytest.raises(RecipeError, match=r"has ended without a word .*--num_workers"):
        list(made_ahead(os._exit, STEPS, 2))
    nobody_stays()


def test_who_takes_no_more_leaves_no_worker_behind(samplers):
    batches = made_ahead(samplers[0].batch, STEPS, 1)
    next(batches)
    assert len(multiprocessing.active_children()) == 1
    batches.close()
    nobody_stays()
