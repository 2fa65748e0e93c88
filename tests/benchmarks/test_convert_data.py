"""The benchmark's images in the paper's layouts: each label map comes back through the toolkit's own readers."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import convert_data
from dataloader.datasets import consep, kumar, open_source
from dataloader.images import read_rgb, write_png
from hovernet_cyclic.core.settings import DataSettings

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("HOVERNET_CYCLIC_DATA", ROOT.parent / "shared" / "data"))
KUMAR = ("TCGA-A7-A13E-01Z-00-DX1", "TCGA-E2-A1B5-01Z-00-DX1")  # one to train on, one to test on
CONSEP = ("train_2", "train_15")
SIDE = 1000


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Two images of either set with touching nuclei of four types, and windows cut from all of them."""
    root = tmp_path_factory.mktemp("benchmark")
    random = np.random.default_rng(0)
    inst_map = np.zeros((SIDE, SIDE), np.uint16)
    for k, (top, left) in enumerate(random.integers(0, SIDE - 40, (60, 2)), 1):
        inst_map[top : top + 25, left : left + 30] = 3 * k  # ids with gaps; some cover others
    inst_map[240:260, 240:260] = 500  # over the corner of four crops
    rows = ["source,name,size,y,x,label,content"]
    for source, names in (("monuseg", (*KUMAR, "TCGA-2Z-A9J9-01A-01-TS1")), ("consep", CONSEP)):
        for name in names:
            image = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            write_png(root / source / "images" / f"{name}.png", image)
            write_png(root / source / "labels" / f"{name}.png", inst_map)
            rows += [
                f"{source},{name},64,{y},{y + 8},{label},tissue" for y, label in ((0, "positive"), (80, "negative"))
            ]
        (root / source / "splits.csv").write_text("name,split\n" + "\n".join(f"{name},train" for name in names) + "\n")
    for name in CONSEP:
        write_png(
            root / "consep" / "class_maps" / f"{name}.png", np.where(inst_map, inst_map % 4 + 1, 0).astype(np.uint8)
        )
    (root / "patch_labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def converted(benchmark, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "datasets"
    command = [sys.executable, "-m", "benchmarks.convert_data", f"--data_dir={benchmark}", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 images of Kumar's 30, 2 of CoNSeP; 0 maps differ" in done.stdout
    assert "4 patches of 2 images; 4 of images to score on are left out" in done.stdout
    return out


def read_map(path):
    import cv2

    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.int32)


def test_masks_of_single_nuclei_give_the_label_map_back(benchmark, converted):
    splits = open_source(DataSettings("monusac"), str(converted))
    original = read_map(benchmark / "monuseg" / "labels" / f"{KUMAR[0]}.png")
    ids = np.unique(original)
    found = splits.train_annotated.annotation(0)
    np.testing.assert_array_equal(ids[found.inst_map], original)
    assert found.notes == () and list(splits.test["same_organ"].tile_ids) == [KUMAR[1]]


def test_mat_files_give_maps_types_and_centroids_back(benchmark, converted):
    from scipy.io import loadmat

    splits = open_source(DataSettings("consep", type_names=consep.MERGED_TYPES), str(converted))
    for source, name in ((splits.train_annotated, CONSEP[0]), (splits.test["test"], CONSEP[1])):
        annotation = source.annotation(0)
        assert annotation.tile_id == name
        np.testing.assert_array_equal(annotation.inst_map, read_map(benchmark / "consep" / "labels" / f"{name}.png"))
        np.testing.assert_array_equal(
            annotation.type_map, read_map(benchmark / "consep" / "class_maps" / f"{name}.png")
        )
    content = loadmat(converted / "consepcrop" / "Train" / "Labels" / f"{CONSEP[0]}.mat")
    ids = np.unique(content["inst_map"])[1:]
    rows, columns = np.nonzero(content["inst_map"] == ids[5])
    np.testing.assert_allclose(content["inst_centroid"][5], [columns.mean(), rows.mean()])
    assert content["inst_type"].shape == (len(ids), 1)


def test_crops_are_where_the_papers_code_cuts_them(benchmark, converted, tmp_path):
    (tmp_path / "MoNuSACCROP").symlink_to(converted / "MoNuSACCROP")
    train = open_source(DataSettings("monusac"), str(tmp_path), with_patches=False).train_annotated
    original = read_map(benchmark / "monuseg" / "labels" / f"{KUMAR[0]}.png")
    image = read_rgb(benchmark / "monuseg" / "images" / f"{KUMAR[0]}.png")
    pasted, seen = np.zeros_like(original), np.zeros_like(image)
    for index, name in enumerate(train.tile_ids):
        n = int(name.rpartition("_")[2])
        window = slice(250 * (n % 4), 250 * (n % 4) + 250), slice(250 * (n // 4), 250 * (n // 4) + 250)
        pasted[window] = train.annotation(index).inst_map
        seen[window] = train.read_tile(index).image
    np.testing.assert_array_equal(pasted, original)
    np.testing.assert_array_equal(seen, image)


def test_patches_keep_their_labels_and_no_scored_image_lends_any(benchmark, converted):
    train = open_source(DataSettings("monusac"), str(converted)).train
    kept = {}
    with (benchmark / "patch_labels.csv").open() as table:
        for row in csv.DictReader(table):
            size, top, left = int(row["size"]), int(row["y"]), int(row["x"])
            kept[f"{row['label']}/{row['name']}__{size}_{top}_{left}"] = row
    assert len(train.patch_labels) == 4
    for index in range(4):
        patch = train.read_patch(index)
        row = kept[patch.patch_id]
        image = read_rgb(benchmark / row["source"] / "images" / f"{row['name']}.png")
        top, left = int(row["y"]), int(row["x"])
        np.testing.assert_array_equal(patch.image, image[top : top + 64, left : left + 64])
        assert patch.labels[0] == (row["label"] == "positive")
        assert kumar.SPLIT_OF.get(row["name"], "train") == "train" and row["name"] != CONSEP[1]


def test_a_changed_map_is_noticed(benchmark, converted, monkeypatch):
    kumar_images, consep_images = convert_data.originals(benchmark)
    assert not list(convert_data.differences(kumar_images, consep_images, converted))
    swapped = [kumar_images[0], kumar_images[1]._replace(label=kumar_images[1].label.with_name("other.png"))]
    other = read_map(kumar_images[1].label)
    other[0, 0] = 999
    write_png(swapped[1].label, other.astype(np.uint16))
    (found,) = convert_data.differences(swapped, consep_images, converted)
    assert KUMAR[1] in found


def test_a_full_folder_and_a_wrong_source_are_refused(benchmark, converted, tmp_path, monkeypatch, capsys):
    for source, out, words in ((benchmark, converted, "not empty"), (tmp_path, tmp_path / "out", "holds no monuseg")):
        monkeypatch.setattr(sys, "argv", ["convert_data.py", f"--data_dir={source}", f"--out={out}"])
        assert convert_data.main() == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert words in sentence


@pytest.mark.skipif(not (REAL / "patch_labels.csv").is_file(), reason="the benchmark's images are not at hand")
def test_a_real_image_of_either_set_comes_back(tmp_path):
    kumar_images, consep_images = convert_data.originals(REAL)
    learnt = [original for original in kumar_images if original.split == kumar.TRAIN]
    kumar_images = [min(learnt, key=lambda original: original.label.stat().st_size)]  # few nuclei, few files
    consep_images = consep_images[:1]
    for original in kumar_images:
        convert_data.write_kumar(original, tmp_path)
    for original in consep_images:
        convert_data.write_consep(original, tmp_path)
    assert not list(convert_data.differences(kumar_images, consep_images, tmp_path))


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_images_that_is_none(benchmark, count, tmp_path, monkeypatch, capsys):
    words = ["convert_data.py", f"--data_dir={benchmark}", f"--out={tmp_path / 'out'}", f"--images={count}"]
    monkeypatch.setattr(sys, "argv", words)
    assert convert_data.main() == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f"--images={count}: give a whole number from 1 to 1000000000." in sentence
    assert not (tmp_path / "out").exists()
