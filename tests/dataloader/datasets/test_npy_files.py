"""hover_net's patches: image and masks in one NumPy file."""

import numpy as np
import pytest

from dataloader.datasets import open_source
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings

SETTINGS = DataSettings("npy_patches", type_names=("background", "a", "b"))
INST_MAP = np.array([[0, 7, 7, 0], [3, 3, 0, 0], [3, 3, 0, 9]], np.int32)
TYPE_MAP = np.array([[0, 1, 1, 0], [2, 2, 0, 0], [2, 2, 0, 1]], np.uint8)
IMAGE = np.random.default_rng(0).integers(0, 256, (3, 4, 3))


@pytest.fixture
def data_dir(tmp_path):
    root = tmp_path / "540x540 patches"
    for split in ("train", "valid"):
        folder = root / split / "540x540_164x164"
        folder.mkdir(parents=True)
        np.save(folder / f"{split}_001.npy", np.dstack([IMAGE, INST_MAP, TYPE_MAP]).astype(np.int32))
        np.save(folder / f"{split}_002.npy", np.dstack([IMAGE, INST_MAP]).astype(np.float64))
    return root


def opened(data_dir, settings=SETTINGS):
    return open_source(settings, str(data_dir), with_patches=False)


def test_channels_become_image_instances_and_types(data_dir):
    splits = opened(data_dir)
    for source, name in ((splits.train_annotated, "train"), (splits.valid, "valid")):
        assert list(source.tile_ids) == [f"{name}_001", f"{name}_002"]
        for index, typed in ((0, True), (1, False)):
            tile, annotation = source.read_tile(index), source.annotation(index)
            np.testing.assert_array_equal(tile.image, IMAGE)
            assert tile.image.dtype == np.uint8 and annotation.inst_map.dtype == np.int32
            np.testing.assert_array_equal(annotation.inst_map, INST_MAP)
            if typed:
                np.testing.assert_array_equal(annotation.type_map, TYPE_MAP)
            else:
                assert annotation.type_map is None
    assert opened(data_dir, DataSettings("npy_patches")).valid.annotation(0).type_map is None


def test_a_run_on_image_level_labels_may_not_open_them(data_dir):
    with pytest.raises(DatasetError, match="set supervision to 'masks'"):
        open_source(SETTINGS, str(data_dir))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4, 3)), r"shape \(3, 4, 3\)"),
        (np.zeros((3, 4, 5)) + 0.5, "0 to 255"),
        (np.zeros((3, 4, 5)) + 300, "0 to 255"),
        (np.array([{}]), "no NPY array"),
    ],
)
def test_arrays_of_another_kind_are_named(data_dir, array, words):
    path = data_dir / "train" / "540x540_164x164" / "train_001.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(DatasetError, match=words) as caught:
        opened(data_dir).train.read_tile(0)
    assert str(path) in str(caught.value)


def test_instances_that_are_no_whole_numbers_are_named(data_dir):
    path = data_dir / "train" / "540x540_164x164" / "train_001.npy"
    np.save(path, np.dstack([IMAGE, INST_MAP - 1, TYPE_MAP]))
    with pytest.raises(DatasetError, match="whole numbers from 0"):
        opened(data_dir).train_annotated.annotation(0)


def test_torn_missing_and_double_files_are_named(data_dir):
    folder = data_dir / "train" / "540x540_164x164"
    path = folder / "train_001.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DatasetError, match=r"train_001\.npy is damaged"):
        opened(data_dir).train.read_tile(0)
    path.unlink()
    np.save(data_dir / "train" / "train_002.npy", IMAGE)
    with pytest.raises(DatasetError, match="have one name"):
        opened(data_dir)
    for found in data_dir.rglob("train*.npy"):
        found.unlink()
    with pytest.raises(DatasetError, match=r"holds no .npy patches"):
        opened(data_dir)
