"""The benchmark folder: a tiny copy of its layout, and the real one where it is at hand."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataloader.datasets import open_source
from dataloader.images import write_png
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings

SETTINGS = DataSettings("benchmark")
HEADER = "source,name,size,y,x,label,content"
REPOSITORY = Path(__file__).parents[3]
REAL = Path(os.environ.get("HOVERNET_CYCLIC_DATA", REPOSITORY.parent / "shared" / "data"))


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture
def data_dir(tmp_path):
    root = tmp_path / "bench"
    splits = {"monuseg": {"m1": "train", "m2": "valid", "m3": "test"}, "consep": {"c1": "train"}}
    for source, names in splits.items():
        for name in names:
            write_png(root / source / "images" / f"{name}.png", picture(ord(name[1])))
            write_png(root / source / "labels" / f"{name}.png", np.eye(60, 80, dtype=np.uint16))
        rows = [f"{name},{split},colon,1,x" for name, split in names.items()]
        (root / source / "splits.csv").write_text("\n".join(["name,split,organ,nuclei,gt_source", *rows]) + "\n")
    write_png(root / "consep" / "class_maps" / "c1.png", 2 * np.eye(60, 80, dtype=np.uint8))
    write_rows(root, "monuseg,m1,16,44,64,positive,tissue", "consep,c1,24,0,8,negative,glass")
    return root


def write_rows(root, *rows, header=HEADER):
    (root / "patch_labels.csv").write_text("\n".join([header, *rows]) + "\n")


def refusal(data_dir):
    with pytest.raises(DatasetError) as caught:
        open_source(SETTINGS, str(data_dir))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_windows_are_cut_where_the_table_says(data_dir):
    train = open_source(SETTINGS, str(data_dir)).train
    np.testing.assert_array_equal(train.patch_labels, np.array([[1], [0]], np.float32))
    assert list(train.patch_shapes) == [(16, 16), (24, 24)]
    assert list(train.patch_groups) == ["monuseg/m1", "consep/c1"]
    assert list(train.tile_ids) == ["m1", "c1"]
    patch = train.read_patch(0)
    np.testing.assert_array_equal(patch.image, picture(ord("1"))[44:60, 64:80])
    patch.image[...] = 0
    assert train.read_patch(0).image.any(), "a caller's change must not reach the cached image"
    assert train.read_patch(1).labels.tolist() == [0.0]


def test_splits_and_types(data_dir):
    splits = open_source(DataSettings("benchmark", type_names=("background", "other", "inflammatory")), str(data_dir))
    assert list(splits.train_annotated.tile_ids) == ["m1", "c1"]
    assert splits.train_annotated.annotation(0).type_map is None
    assert splits.train_annotated.annotation(1).type_map.max() == 2
    assert list(splits.valid.tile_ids) == ["m2"] and list(splits.test) == ["monuseg_test"]
    assert list(splits.test["monuseg_test"].tile_ids) == ["m3"]
    assert splits.valid.annotation(0).inst_map.sum() == 60
    assert open_source(SETTINGS, str(data_dir)).train_annotated.annotation(1).type_map is None


def test_training_is_the_same_without_any_label_folder(data_dir):
    before = open_source(SETTINGS, str(data_dir)).train
    expected = [before.read_patch(i).image for i in range(2)], list(before.patch_groups), list(before.tile_ids)
    for source in ("monuseg", "consep"):
        shutil.rmtree(data_dir / source / "labels")
    splits = open_source(SETTINGS, str(data_dir))
    assert splits.valid is None and splits.train_annotated is None and splits.test == {}
    after = splits.train
    assert (list(after.patch_groups), list(after.tile_ids)) == expected[1:]
    for i in range(2):
        np.testing.assert_array_equal(after.read_patch(i).image, expected[0][i])


def test_opening_and_training_touch_no_label_file(data_dir):
    for source in ("monuseg", "consep"):
        for path in (data_dir / source / "labels").iterdir():
            path.write_bytes(b"never to be read")
    splits = open_source(SETTINGS, str(data_dir))
    assert splits.train.read_tile(1).image.shape == (60, 80, 3)
    assert splits.valid.read_tile(0).tile_id == "m2"
    with pytest.raises(DatasetError, match=r"m2\.png"):
        splits.valid.annotation(0)


def test_an_audit_hook_sees_no_label_folder(data_dir):
    code = (
        "import sys\n"
        "seen = []\n"
        "names = ('open', 'os.listdir', 'os.scandir')\n"
        "sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event in names else None)\n"
        "from dataloader.datasets import open_source\n"
        "from hovernet_cyclic.core.settings import DataSettings\n"
        "splits = open_source(DataSettings('benchmark'), sys.argv[1])\n"
        "train = splits.train\n"
        "train.read_tile(0), train.read_patch(1), train.patch_labels, train.patch_shapes, splits.valid.read_tile(0)\n"
        "read = [name for name in seen if name.startswith(sys.argv[1])]\n"
        "assert any('images' in name for name in read) and not any('labels/' in name + '/' for name in read), read\n"
        "splits.valid.annotation(0)\n"
        "assert any('labels/m2.png' in name for name in seen)\n"
    )
    command = [sys.executable, "-c", code, str(data_dir)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_source_travels_to_a_worker_without_its_pixels(data_dir):
    train = open_source(SETTINGS, str(data_dir)).train
    train.read_patch(0)
    sent = pickle.dumps(train)
    assert len(sent) < 5000
    np.testing.assert_array_equal(pickle.loads(sent).read_patch(0).image, train.read_patch(0).image)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("monuseg,m9,16,0,0,positive,tissue", "monuseg/m9"),
        ("monuseg,m2,16,0,0,positive,tissue", "no training image"),
        ("other,m1,16,0,0,positive,tissue", "other/m1"),
        ("monuseg,m1,16,0,0,maybe,tissue", "'maybe'"),
        ("monuseg,m1,16,a,0,positive,tissue", "whole numbers"),
        ("monuseg,m1,16,45,0,positive,tissue", "not inside"),
        ("monuseg,m1,16,0,-1,positive,tissue", "not inside"),
        ("monuseg,m1,0,0,0,positive,tissue", "not inside"),
        ("monuseg,m1,16,0", "cut short"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(data_dir, row, words):
    write_rows(data_dir, "consep,c1,24,0,8,negative,glass", "monuseg,m1,8,0,0,positive,tissue", row)
    sentence = refusal(data_dir)
    assert f"{data_dir / 'patch_labels.csv'} line 4" in sentence and words in sentence


def test_tables_that_cannot_serve_are_refused(data_dir):
    write_rows(data_dir, "monuseg,m1,8,0,0,positive,tissue")
    assert "both positive and negative" in refusal(data_dir)
    write_rows(data_dir, header="source,name,size,y,x")
    assert "lacks the column label" in refusal(data_dir)
    (data_dir / "patch_labels.csv").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(data_dir)
    (data_dir / "patch_labels.csv").unlink()
    assert "does not exist" in refusal(data_dir)


def test_splits_that_name_no_file_or_no_split_are_refused(data_dir):
    path = data_dir / "consep" / "splits.csv"
    path.write_text("name,split\nc7,train\n")
    assert "line 2" in refusal(data_dir) and "c7.png" in refusal(data_dir)
    path.write_text("name,split\nc1,later\n")
    assert "'later'" in refusal(data_dir)


@pytest.mark.skipif(not (REAL / "patch_labels.csv").is_file(), reason="the benchmark's images are not at hand")
def test_the_real_benchmark_opens():
    splits = open_source(SETTINGS, str(REAL))
    train = splits.train
    assert len(train.tile_ids) == 39 and len(splits.valid.tile_ids) == 5
    assert len(splits.test["monuseg_test"].tile_ids) == 14
    assert len(train.patch_shapes) == len(train.patch_groups) == len(train.patch_labels) == 18971
    assert set(train.patch_groups) == {
        f"{'consep' if t.startswith('train_') else 'monuseg'}/{t}" for t in train.tile_ids
    }
    for index in (0, 9000, 18970):
        assert train.read_patch(index).image.shape[:2] == train.patch_shapes[index]
