"""PanNuke's folds of arrays."""

import numpy as np
import pytest

from dataloader.datasets import open_source
from dataloader.datasets.pannuke import TYPES
from dataloader.images import write_png
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings

SIDE = 8


def images(fold):
    return np.random.default_rng(fold).integers(0, 256, (2, SIDE, SIDE, 3))


def masks():
    """(2, SIDE, SIDE, 6): the first patch has nuclei that share an id between types, and two that overlap."""
    array = np.zeros((2, SIDE, SIDE, 6))
    array[0, 0:3, 0:3, 0] = 5
    array[0, 4:6, 4:8, 2] = 5
    array[0, 2:4, 2:3, 4] = 8
    array[..., 5] = array[..., :5].sum(-1) == 0
    return array


@pytest.fixture
def data_dir(tmp_path):
    root = tmp_path / "PanNuke"
    for fold in (1, 2, 3):
        for name, array in (("images", images(fold).astype(float)), ("masks", masks())):
            folder = root / f"Fold {fold}" / name / f"fold{fold}"
            folder.mkdir(parents=True)
            np.save(folder / f"{name}.npy", array)
        np.save(root / f"Fold {fold}" / "images" / f"fold{fold}" / "types.npy", np.array(["Breast", "Colon"]))
    for kind in ("positive", "negative"):
        write_png(root / "MyNP" / kind / "a.png", np.uint8(images(7)[0]))
    return root


def test_folds_images_instances_and_types(data_dir):
    splits = open_source(DataSettings("pannuke", type_names=TYPES), str(data_dir))
    assert list(splits.train.tile_ids) == ["fold1_0000", "fold1_0001"]
    sources = (splits.train_annotated, splits.valid, splits.test["test"])
    for fold, source in enumerate(sources, 1):
        np.testing.assert_array_equal(source.read_tile(1).image, images(fold)[1])
        annotation = source.annotation(0)
        expected = np.zeros((SIDE, SIDE), int)
        expected[0:3, 0:3], expected[4:6, 4:8], expected[2:4, 2:3] = 1, 2, 3
        np.testing.assert_array_equal(annotation.inst_map, expected)
        np.testing.assert_array_equal(annotation.type_map, np.choose(expected, [0, 1, 3, 5]))
        assert annotation.notes == ("1 of 3 nuclei lost 1 px to smaller ones that overlap them",)
        assert not source.annotation(1).inst_map.any()


def test_training_opens_no_masks(data_dir):
    for path in data_dir.rglob("masks.npy"):
        path.write_bytes(b"never to be read")
    splits = open_source(DataSettings("pannuke"), str(data_dir))
    assert splits.train.read_tile(0).image.shape == (SIDE, SIDE, 3)
    with pytest.raises(DatasetError, match=r"masks\.npy is damaged"):
        splits.valid.annotation(0)
    for path in data_dir.rglob("masks.npy"):
        path.unlink()
    splits = open_source(DataSettings("pannuke"), str(data_dir))
    assert splits.train_annotated is None and splits.valid is None and splits.test == {}


def test_what_cannot_be_used_is_named(data_dir):
    with pytest.raises(DatasetError, match="PanNuke has"):
        open_source(DataSettings("pannuke", type_names=("background", "x")), str(data_dir))
    np.save(next(data_dir.glob("Fold 2/masks/*/masks.npy")), masks()[:1])
    with pytest.raises(DatasetError, match="its fold has 2 images"):
        open_source(DataSettings("pannuke"), str(data_dir)).valid.annotation(0)
    path = next(data_dir.glob("Fold 1/images/*/images.npy"))
    np.save(path, np.zeros((2, SIDE, SIDE)))
    with pytest.raises(DatasetError, match=r"shape \(2, 8, 8\)"):
        open_source(DataSettings("pannuke"), str(data_dir))
    path.unlink()
    with pytest.raises(DatasetError, match=r"Fold 1/images/fold1/images.npy"):
        open_source(DataSettings("pannuke"), str(data_dir))
