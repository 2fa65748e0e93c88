"""Own data in folders, through `open_source`."""

import json
import shutil

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from dataloader.datasets import open_source
from dataloader.images import write_png
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings

SETTINGS = DataSettings("folder", mpp=0.5)


@pytest.fixture
def data_dir(tmp_path):
    root = tmp_path / "own data"
    random = np.random.default_rng(0)

    def image(height, width):
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)

    for name, shape in (("positive/b", (20, 24)), ("positive/a", (16, 16)), ("negative/a", (32, 16))):
        write_png(root / "patches" / f"{name}.png", image(*shape))
    for split in ("tiles", "valid/images", "test/images"):
        write_png(root / split / "one.png", image(40, 50))
    inst_map = np.zeros((40, 50), np.uint16)
    inst_map[5:15, 5:15], inst_map[20:30, 20:30] = 1, 300
    for labels in ("labels", "valid/labels", "test/labels"):
        write_png(root / labels / "one.png", inst_map)
    return root


def refusal(data_dir, settings=SETTINGS):
    with pytest.raises(DatasetError) as caught:
        open_source(settings, str(data_dir))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_patches_labels_groups_and_shapes_agree(data_dir):
    train = open_source(SETTINGS, str(data_dir)).train
    assert list(train.class_names) == ["nucleus"]
    assert train.patch_labels.dtype == np.float32
    np.testing.assert_array_equal(train.patch_labels, [[1], [1], [0]])
    assert list(train.patch_groups) == ["a", "b", "a"]
    assert list(train.patch_shapes) == [(16, 16), (20, 24), (32, 16)]
    patches = [train.read_patch(i) for i in range(3)]
    assert [patch.image.shape[:2] for patch in patches] == list(train.patch_shapes)
    assert [patch.labels.tolist() for patch in patches] == train.patch_labels.tolist()
    assert len({patch.patch_id for patch in patches}) == 3


def test_tiles_and_annotated_splits(data_dir):
    splits = open_source(SETTINGS, str(data_dir))
    tile = splits.train.read_tile(0)
    assert (tile.tile_id, tile.mpp, tile.image.shape) == ("one", 0.5, (40, 50, 3))
    assert not hasattr(splits.train, "annotation")
    for source in (splits.train_annotated, splits.valid, splits.test["test"]):
        assert list(source.tile_ids) == ["one"] and source.read_tile(0).mpp == 0.5
        label = source.annotation(0)
        assert (label.tile_id, label.inst_map.dtype, label.type_map) == ("one", np.int32, None)
        assert sorted(np.unique(label.inst_map)) == [0, 1, 300]


def test_without_label_folders_there_are_no_annotated_splits(data_dir):
    for labels in ("labels", "valid/labels", "test/labels"):
        shutil.rmtree(data_dir / labels)
    splits = open_source(SETTINGS, str(data_dir))
    assert splits.train_annotated is None and splits.valid is None and splits.test == {}
    assert len(splits.train.patch_groups) == 3


def test_opening_reads_no_label_and_no_image(data_dir):
    for path in data_dir.rglob("*.png"):
        path.write_bytes(b"no image")
    assert len(open_source(SETTINGS, str(data_dir)).train.patch_groups) == 3


@pytest.mark.parametrize(("gone", "words"), [("positive", "no positive"), ("negative", "no negative")])
def test_one_sided_patches_are_refused(data_dir, gone, words):
    for path in (data_dir / "patches" / gone).iterdir():
        path.unlink()
    assert words in refusal(data_dir)
    (data_dir / "patches" / gone).rmdir()
    assert words in refusal(data_dir)


def test_missing_and_empty_folders_are_named(data_dir, tmp_path):
    shutil.rmtree(data_dir / "tiles")
    assert str(data_dir / "tiles") in refusal(data_dir)
    (data_dir / "tiles").mkdir()
    assert "holds no image" in refusal(data_dir)
    assert "does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "does not exist" in refusal(tmp_path / "empty")


def test_missing_patches_are_named(data_dir):
    shutil.rmtree(data_dir / "patches")
    assert str(data_dir / "patches" / "positive") in refusal(data_dir)


def test_two_tiles_of_one_stem_are_refused(data_dir):
    shutil.copy(data_dir / "tiles" / "one.png", data_dir / "tiles" / "one.tif")
    sentence = refusal(data_dir)
    assert "one.png" in sentence and "one.tif" in sentence


def test_several_classes_are_refused(data_dir):
    assert "2" in refusal(data_dir, DataSettings("folder", class_names=("a", "b")))


def test_a_missing_or_misfit_label_is_named_when_it_is_asked_for(data_dir):
    write_png(data_dir / "valid" / "labels" / "one.png", np.zeros((40, 51), np.uint16))
    valid = open_source(SETTINGS, str(data_dir)).valid
    with pytest.raises(DatasetError, match="40 x 51 px"):
        valid.annotation(0)
    (data_dir / "valid" / "labels" / "one.png").unlink()
    with pytest.raises(DatasetError, match=r"one\.png has no label map"):
        valid.annotation(0)


def test_a_label_map_among_the_patches_is_refused_when_read(data_dir):
    write_png(data_dir / "patches" / "positive" / "a.png", np.zeros((16, 16), np.uint16))
    with pytest.raises(DatasetError, match="label map"):
        open_source(SETTINGS, str(data_dir)).train.read_patch(0)


def test_patches_named_after_one_slide_are_one_group(data_dir):
    kept = data_dir / "patches" / "positive" / "a.png"
    of_qupath = ("slide9 [d=2,x=0,y=96,w=96,h=96].png", "slide9 [x=96,y=96,w=96,h=96].png")
    for name in ("slide7__01.png", "slide7__02.png", "slide_8_01.png", *of_qupath):
        (kept.parent / name).write_bytes(kept.read_bytes())
    groups = list(open_source(SETTINGS, str(data_dir)).train.patch_groups)
    assert groups.count("slide7") == 2 and "slide_8_01" in groups and groups.count("slide9") == 2


def test_outlines_serve_as_labels_and_name_types(data_dir):
    (data_dir / "labels" / "one.png").unlink()
    ring = [[10, 5], [20, 5], [20, 15], [10, 15], [10, 5]]
    nucleus = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    nucleus["properties"] = {"classification": {"name": "Tumour"}}
    (data_dir / "labels" / "one.geojson").write_text(json.dumps([nucleus]))
    expected = np.zeros((40, 50), np.int32)
    expected[5:15, 10:20] = 1
    annotation = open_source(SETTINGS, str(data_dir)).train_annotated.annotation(0)
    np.testing.assert_array_equal(annotation.inst_map, expected)
    assert annotation.type_map is None
    typed = DataSettings("folder", mpp=0.5, type_names=("background", "stroma", "tumour"))
    annotation = open_source(typed, str(data_dir)).train_annotated.annotation(0)
    np.testing.assert_array_equal(annotation.type_map, 2 * expected)
    (data_dir / "labels" / "one.geojson").unlink()
    vertices = "".join(f'<Vertex X="{x - 0.5}" Y="{y - 0.5}"/>' for x, y in ring[:-1])
    text = f"<Annotations><Annotation><Regions><Region>{vertices}</Region></Regions></Annotation></Annotations>"
    (data_dir / "labels" / "one.xml").write_text(text)
    annotation = open_source(SETTINGS, str(data_dir)).train_annotated.annotation(0)
    np.testing.assert_array_equal(annotation.inst_map, expected)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".mat"])
def test_label_maps_of_every_format_serve(data_dir, suffix):
    label = data_dir / "labels" / "one.png"
    inst_map = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
    label.unlink()
    path = label.with_suffix(suffix)
    if suffix == ".npy":
        np.save(path, inst_map)
    elif suffix == ".mat":
        savemat(path, {"inst_map": inst_map})
    else:
        cv2.imwrite(str(path), inst_map)
    annotation = open_source(SETTINGS, str(data_dir)).train_annotated.annotation(0)
    np.testing.assert_array_equal(annotation.inst_map, inst_map)


def test_patches_of_one_patient_are_one_group(data_dir):
    kept = data_dir / "patches" / "positive" / "a.png"
    for name in ("TCGA-A7-A13E-01Z-00-DX1_3.png", "TCGA-A7-A13E-01A_9.png", "TCGA-A7-A13F_1.png"):
        (kept.parent / name).write_bytes(kept.read_bytes())
    groups = list(open_source(SETTINGS, str(data_dir)).train.patch_groups)
    assert groups.count("TCGA-A7-A13E") == 2 and groups.count("TCGA-A7-A13F") == 1
