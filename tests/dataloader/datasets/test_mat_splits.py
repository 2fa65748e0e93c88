"""ccRCC and CoNSeP: splits of PNG images with MAT label maps."""

import shutil

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from dataloader.datasets import ccrcc, consep, open_source
from dataloader.images import write_png
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings

SHAPE = (10, 12)
INST_MAP = np.zeros(SHAPE, np.int32)
INST_MAP[0:3, 0:4], INST_MAP[4:9, 2:8], INST_MAP[4:6, 9:12] = 1, 2, 4  # ids with a gap, as CoNSeP has them


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


def types(*of):
    """type_map of INST_MAP: the types of nuclei 1, 2 and 4."""
    return np.choose(INST_MAP, [0, of[0], of[1], 0, of[2]]).astype(np.uint8)


def write_set(root, name, content):
    """content(split) -> what the MAT file of each image holds."""
    for seed, split in enumerate(("Train", "Valid", "Test")):
        for part in ("Images", "Labels"):
            (root / name / split / part).mkdir(parents=True)
        write_png(root / name / split / "Images" / f"{split.lower()} ä_1.png", picture(seed))
        savemat(root / name / split / "Labels" / f"{split.lower()} ä_1.mat", content)
    for kind in ("positive", "negative"):
        write_png(root / "MyNP" / kind / "a.png", picture(9))
    return root


@pytest.fixture
def ccrcc_data(tmp_path):
    content = {"instance_map": INST_MAP, "class_map": types(1, 3, 4), "TCGA_file_name": "TCGA-A3-3306.svs"}
    return write_set(tmp_path / "datasets", "ccrcccrop", content)


@pytest.fixture
def consep_data(tmp_path):
    """As CoNSeP's makers save it: floating point, types and centroids by nucleus."""
    content = {
        "inst_map": INST_MAP.astype(float),
        "type_map": types(7, 3, 2).astype(float),
        "inst_type": np.array([[7.0], [3.0], [2.0]]),
        "inst_centroid": np.array([[1.5, 1.0], [4.5, 6.0], [10.0, 4.5]]),
    }
    return write_set(tmp_path / "datasets", "CoNSeP", content)


def open_consep(root, **settings):
    return open_source(DataSettings("consep", **settings), str(root))


def test_ccrcc_maps_grades_and_splits(ccrcc_data):
    splits = open_source(DataSettings("ccrcc", type_names=ccrcc.TYPES), str(ccrcc_data))
    assert list(splits.train.tile_ids) == ["train ä_1"] and len(splits.train.patch_labels) == 2
    np.testing.assert_array_equal(splits.train.read_tile(0).image, picture(0))
    for source in (splits.train_annotated, splits.valid, splits.test["test"]):
        annotation = source.annotation(0)
        np.testing.assert_array_equal(annotation.inst_map, INST_MAP)
        np.testing.assert_array_equal(annotation.type_map, types(1, 3, 4))
    assert annotation.tile_id == "test ä_1"
    untyped = open_source(DataSettings("ccrcc"), str(ccrcc_data))
    assert untyped.valid.annotation(0).type_map is None


def test_the_paper_joins_epithelial_and_spindle_types(consep_data):
    inst_map = np.arange(1, SHAPE[0] * SHAPE[1] + 1).reshape(SHAPE)
    type_map = inst_map % 8
    savemat(next((consep_data / "CoNSeP" / "Valid" / "Labels").iterdir()), {"inst_map": inst_map, "type_map": type_map})
    joined = open_consep(consep_data, type_names=consep.MERGED_TYPES).valid.annotation(0).type_map
    joins = {name: {consep.TYPES[kind] for kind in type_map[joined == k]} for k, name in enumerate(consep.MERGED_TYPES)}
    assert joins == {
        "background": {"background"},
        "other": {"other"},
        "inflammatory": {"inflammatory"},
        "epithelial": {"healthy epithelial", "malignant epithelial"},
        "spindle": {"fibroblast", "muscle", "endothelial"},
    }


@pytest.mark.parametrize(("names", "expected"), [(consep.TYPES, (7, 3, 2)), (consep.MERGED_TYPES, (4, 3, 2))])
def test_consep_types_as_published_or_joined(consep_data, names, expected):
    annotation = open_consep(consep_data, type_names=names).valid.annotation(0)
    np.testing.assert_array_equal(annotation.inst_map, INST_MAP)
    np.testing.assert_array_equal(annotation.type_map, types(*expected))
    assert annotation.type_map.dtype == np.uint8


def test_types_by_nucleus_serve_where_there_is_no_type_map(consep_data):
    content = {"inst_map": INST_MAP, "inst_type": np.array([[7], [3], [2]])}
    savemat(next((consep_data / "CoNSeP" / "Valid" / "Labels").iterdir()), content)
    annotation = open_consep(consep_data, type_names=consep.TYPES).valid.annotation(0)
    np.testing.assert_array_equal(annotation.type_map, types(7, 3, 2))


def test_the_crops_folder_and_either_name_of_the_maps(consep_data):
    (consep_data / "CoNSeP").rename(consep_data / "consepcrop")
    content = {"instance_map": INST_MAP, "class_map": types(1, 1, 6)}
    savemat(next((consep_data / "consepcrop" / "Test" / "Labels").iterdir()), content)
    annotation = open_consep(consep_data, type_names=consep.TYPES).test["test"].annotation(0)
    np.testing.assert_array_equal(annotation.type_map, types(1, 1, 6))
    inside = open_consep(consep_data / "consepcrop")
    assert list(inside.train.tile_ids) == ["train ä_1"] and len(inside.train.patch_labels) == 2


def test_one_png_per_nucleus_serves_where_there_are_no_mat_files(consep_data):
    root = consep_data / "CoNSeP" / "Test"
    shutil.rmtree(root / "Labels")
    for k, inst_id in enumerate((1, 2, 4)):
        write_png(root / "Instance_mask" / "test ä_1" / f"{k}.png", np.uint8(inst_id == INST_MAP) * 255)
    annotation = open_consep(consep_data).test["test"].annotation(0)
    np.testing.assert_array_equal(annotation.inst_map, np.choose(INST_MAP, [0, 1, 2, 0, 3]))
    shutil.rmtree(root / "Instance_mask" / "test ä_1")
    with pytest.raises(DatasetError, match=r"Instance_mask.*unpack the whole archive"):
        open_consep(consep_data).test["test"].annotation(0)


def test_training_opens_no_mat_file(consep_data):
    for path in consep_data.rglob("*.mat"):
        path.write_bytes(b"never to be read")
    splits = open_consep(consep_data)
    assert splits.train.read_tile(0).image.shape == (*SHAPE, 3) and splits.valid.read_tile(0).tile_id == "valid ä_1"
    with pytest.raises(DatasetError, match=r"valid ä_1\.mat"):
        splits.valid.annotation(0)
    for path in consep_data.rglob("Labels"):
        shutil.rmtree(path)
    splits = open_consep(consep_data)
    assert splits.train_annotated is None and splits.valid is None and splits.test == {}


def valid_refusal(root, **settings):
    with pytest.raises(DatasetError) as caught:
        open_consep(root, **settings).valid.annotation(0)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


def test_bad_labels_are_refused_in_one_sentence(consep_data):
    path = next((consep_data / "CoNSeP" / "Valid" / "Labels").iterdir())
    savemat(path, {"inst_map": INST_MAP[:9]})
    assert "has 9 x 12 px but" in valid_refusal(consep_data) and "has 10 x 12 px" in valid_refusal(consep_data)
    savemat(path, {"inst_map": INST_MAP, "type_map": types(1, 9, 2)})
    assert "type 9, which this set does not have" in valid_refusal(consep_data, type_names=consep.TYPES)
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    for content in (header.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(99), b"\x89HDF\r\n\x1a\n" + bytes(99)):
        path.write_bytes(content)
        assert str(path) in valid_refusal(consep_data) and "'-v7'" in valid_refusal(consep_data)
    path.unlink()
    assert "valid ä_1.png has no label map" in valid_refusal(consep_data)


def test_16_bit_and_rgba_images_are_refused(consep_data):
    path = next((consep_data / "CoNSeP" / "Train" / "Images").iterdir())
    rgba = np.dstack([picture(0), np.full(SHAPE, 9, np.uint8)])
    for image, words in ((np.uint16(picture(0)), "uint16 values"), (rgba, "partly transparent")):
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        with pytest.raises(DatasetError, match=words):
            open_consep(consep_data).train.read_tile(0)


@pytest.mark.parametrize("reader", ["ccrcc", "consep"])
def test_wrong_roots_types_and_missing_parts_are_named(consep_data, ccrcc_data, reader):
    root, name = consep_data, {"ccrcc": "ccrcccrop", "consep": "CoNSeP"}[reader]
    with pytest.raises(DatasetError, match="this set has"):
        open_source(DataSettings(reader, type_names=("background", "nucleus")), str(root))
    shutil.rmtree(root / name / "Train" / "Images")
    with pytest.raises(DatasetError, match="Train/Images does not exist"):
        open_source(DataSettings(reader), str(root))
    shutil.rmtree(root / name)
    with pytest.raises(DatasetError, match=f"holds no folder .*{name}"):
        open_source(DataSettings(reader), str(root))
