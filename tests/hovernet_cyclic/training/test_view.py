"""What `--view` shows."""

import dataclasses

import numpy as np
import pytest

import config
from dataloader.datasets import open_source
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import DataSplits
from hovernet_cyclic.training.view import NEGATIVE, POSITIVE, train_rows, valid_rows, write_view


@pytest.fixture
def recipe(tmp_path):
    return dataclasses.replace(config.folder(), log_dir=str(tmp_path / "run"))


def test_patches_are_framed_by_their_label_and_shown_as_augmented(recipe, drawn_once):
    source = open_source(recipe.data, str(drawn_once)).train
    rows = train_rows(source, recipe)
    assert [len(row) for row in rows] == [8, 8, 2, 2]
    for row, colour in zip(rows[:2], (POSITIVE, NEGATIVE), strict=True):
        assert all(tuple(picture[0, 0]) == colour for picture in row)
    again = train_rows(source, recipe)
    assert all(
        np.array_equal(a, b) for one, two in zip(rows, again, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_once_a_run_has_made_pseudo_masks_they_are_shown_too(finished, drawn_once, recipe):
    source = open_source(recipe.data, str(drawn_once)).train
    rows = train_rows(source, dataclasses.replace(recipe, log_dir=str(finished.path)))
    assert [len(row) for row in rows] == [8, 8, 4, 4], "image, what is taught, and the two hv maps"


def test_a_valid_row_is_the_tile_plain_and_outlined(recipe, drawn_once):
    ((plain, outlined),) = valid_rows(open_source(recipe.data, str(drawn_once)).valid)
    assert plain.shape == outlined.shape and 0 < (plain != outlined).any(-1).mean() < 0.5


def test_valid_data_that_is_missing_is_named(recipe, drawn_once, tmp_path):
    train = open_source(recipe.data, str(drawn_once)).train
    with pytest.raises(DatasetError, match="valid/images"):
        write_view(DataSplits(train), "valid", recipe)
    path = write_view(DataSplits(train), "train", recipe)
    assert path == tmp_path / "run_view_train.png" and path.exists() and not (tmp_path / "run").exists()
