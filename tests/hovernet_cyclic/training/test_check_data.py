"""--check_data: everything is read once, what is wrong is named, and a leak makes it fail."""

import shutil

import cv2
import numpy as np
import pytest

import run_train
from dataloader.datasets import open_source
from dataloader.images import read_rgb, write_png
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.training.check_data import check_data, describe

FOLDER = DataSettings("folder")
UNJUDGED = "every cycle is kept unjudged, for that takes both"
CCRCC = DataSettings("ccrcc", type_names=("background", "grade 1", "grade 2", "grade 3", "endothelial"))


@pytest.fixture
def checked(capsys):
    """checked(recipe, folder) -> exit code and what was printed."""

    def run(recipe, folder):
        code = run_train.main([f"--recipe={recipe}", f"--data_dir={folder}", "--check_data"])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out or printed.err

    return run


def test_sound_data_is_counted(checked, paper_data):
    code, text = checked("monusac", paper_data)
    assert code == 0 and text.splitlines()[-1] == "sound"
    assert "patches: 32\n  px: 48 x 48 (32)\n  um/px: 0.25\n  labels: nucleus 16 (50%), no nucleus 16 (50%)" in text
    counts = [len(list(paper_data.glob(f"MoNuSACGT/*/{name}*/masks/*"))) for name in ("TCGA-A7", "TCGA-HE")]
    assert f"train: 2 tiles\n  px: 128 x 128 (2)\n  um/px: 0.25\n  nuclei: {sum(counts)}, {min(counts)} to" in text
    assert "leaks between splits: none" in text and "cannot be read: none" in text


@pytest.fixture
def folder_of(tmp_path):
    """folder_of({label: number of slides}) -> a data folder with one tile, and two patches of each slide and label."""
    rng = np.random.default_rng(0)

    def make(slides):
        names = [
            f"patches/{label}/slide{slide}__{number}.png"
            for label, count in slides.items()
            for slide in range(count)
            for number in range(2)
        ]
        for name in ["tiles/tile.png", *names]:
            write_png(tmp_path / name, rng.integers(0, 255, (64, 64, 3), np.uint8))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("slides", "said"),
    [
        (1, f"1; held out to judge cycles: nucleus 0, no nucleus 0 (data.valid_fraction 0.15): {UNJUDGED}"),
        (3, f"3; held out to judge cycles: nucleus 0, no nucleus 0 (data.valid_fraction 0.15): {UNJUDGED}"),
        (4, "4; held out to judge cycles: nucleus 2, no nucleus 2"),
    ],
)
def test_it_is_said_what_is_held_out_to_judge_cycles(checked, folder_of, slides, said):
    code, text = checked("folder", folder_of({"positive": slides, "negative": slides}))
    assert code == 0 and f"\n  cut from images, by their names: {said}\n" in text


def test_it_is_said_where_patches_of_one_label_alone_are_held_out(folder_of):
    folder = folder_of({"positive": 4})
    for slide in range(4):
        (folder / "patches" / "negative").mkdir(exist_ok=True)
        shutil.copy(folder / "tiles" / "tile.png", folder / "patches" / "negative" / f"other{slide}__0.png")
    told = describe(check_data(open_source(FOLDER, str(folder)), FOLDER, 10), FOLDER, "x")
    (line,) = [line for line in told.splitlines() if "held out" in line]
    assert line.startswith("  cut from images, by their names: 8; held out to judge cycles: nucleus ")
    assert line.endswith(f"(data.valid_fraction 0.15): {UNJUDGED}") and "nucleus 0" in line


def test_a_label_whose_only_slide_is_held_out_is_missing(folder_of):
    splits = open_source(FOLDER, str(folder_of({"positive": 8, "negative": 1})))
    reports = [check_data(splits, FOLDER, seed) for seed in range(30)]
    stopped = [report for report in reports if not report.sound]
    assert 0 < len(stopped) < len(reports), "the seed decides which slide is held out"
    (sentence,) = stopped[0].missing
    assert sentence.startswith("No negative patch is left to train on")
    assert f"missing: 1\n  {sentence}" in describe(stopped[0], FOLDER, "x")


def test_types_are_counted_by_the_names_of_the_set(paper_data):
    report = check_data(open_source(CCRCC, str(paper_data)), CCRCC, 10)
    (valid,) = report.groups["valid"]
    inst_map = open_source(CCRCC, str(paper_data)).valid.annotation(0).inst_map
    ids = np.unique(inst_map)[1:]
    assert valid.nuclei == {kind: int((ids % 4 + 1 == kind).sum()) for kind in np.unique(ids % 4 + 1)}
    assert report.sound and "endothelial" in describe(report, CCRCC, "x")


def test_a_picture_in_two_splits_is_a_leak(checked, paper_data):
    shutil.copy(
        next((paper_data / "ccrcccrop" / "Train" / "Images").iterdir()),
        next((paper_data / "ccrcccrop" / "Test" / "Images").iterdir()),
    )
    code, text = checked("ccrcc", paper_data)
    assert code == 1 and "NOT sound" in text.splitlines()[-1]
    assert "leaks between splits: 1\n  one picture in several splits: train tile_00 = test test_00" in text


def test_a_training_patch_that_is_a_test_image_is_a_leak_whatever_its_format(checked, paper_data):
    (image,) = (paper_data / "consepcrop" / "Test" / "Images").iterdir()
    cv2.imwrite(str(paper_data / "MyNP" / "positive" / "copied.bmp"), read_rgb(image)[..., ::-1])
    code, text = checked("consep", paper_data)
    assert code == 1 and "patches positive/copied = test test_00" in text


def test_a_patch_under_both_labels_is_a_contradiction(checked, paper_data):
    patch = next((paper_data / "MyNP" / "positive").iterdir())
    shutil.copy(patch, paper_data / "MyNP" / "negative" / "again.png")
    shutil.copy(patch, paper_data / "MyNP" / "positive" / "copy.png")
    code, text = checked("consep", paper_data)
    assert code == 1 and "under both labels: 1" in text and "copies within a split: 2" in text


def test_what_cannot_be_read_is_named_and_the_rest_is_counted(checked, paper_data):
    mat = next((paper_data / "ccrcccrop" / "Valid" / "Labels").iterdir())
    mat.write_bytes(mat.read_bytes()[:100])
    image = next((paper_data / "ccrcccrop" / "Valid" / "Images").iterdir())
    shutil.copy(image, next((paper_data / "ccrcccrop" / "Test" / "Images").iterdir()))
    patch = next((paper_data / "MyNP" / "negative").iterdir())
    patch.write_bytes(b"no image")
    code, text = checked("ccrcc", paper_data)
    assert code == 1 and "cannot be read: 2" in text and str(mat) in text and str(patch) in text
    assert "patches: 31" in text and "test: 1 tile\n" in text
    assert "valid valid_00 = test test_00" in text, "a picture without a readable mask is compared all the same"


def test_overlaps_and_masks_without_nuclei_are_noted(checked, paper_data):
    masks = paper_data / "MoNuSACGT" / "stage1_train" / "TCGA-KB-A93J-01A-01-TS1" / "masks"
    write_png(masks / "999.png", np.full((128, 128), 255, np.uint8))
    write_png(masks / "1000.png", np.zeros((128, 128), np.uint8))
    code, text = checked("monusac", paper_data)
    assert code == 0
    assert "note: TCGA-KB-A93J-01A-01-TS1: 1 of" in text and "masks hold no nucleus" in text
    assert "to smaller ones that overlap them" in text
    for path in masks.iterdir():
        write_png(path, np.zeros((128, 128), np.uint8))
    assert "without any nucleus: TCGA-KB-A93J-01A-01-TS1" in checked("monusac", paper_data)[1]


def test_patients_on_both_sides_are_said(checked, paper_data):
    patch = next((paper_data / "MyNP" / "positive").iterdir())
    patch.rename(patch.with_name("TCGA-KB-A93J-01A_17.png"))
    code, text = checked("monusac", paper_data)
    assert code == 0 and "TCGA-KB-A93J in different_organ, patches" in text


def test_data_that_cannot_be_opened_is_one_sentence(checked, tmp_path):
    code, text = checked("monusac", tmp_path)
    assert code == 2 and len(text.splitlines()) == 1


def test_nothing_is_written_but_the_cache(checked, paper_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    checked("monusac", paper_data)
    made = {path.relative_to(tmp_path).parts[2] for path in set(tmp_path.rglob("*")) - before}
    assert made == {".converted"}
