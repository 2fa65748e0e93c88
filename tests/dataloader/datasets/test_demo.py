"""The drawn data: deterministic, true to its labels, and laid out as own data is."""

import hashlib
import json

import cv2
import numpy as np
import pytest
from scipy import ndimage

from dataloader.datasets import open_source
from dataloader.datasets.demo import DEMO_VERSION, DemoSizes, draw_field, write_demo_data
from dataloader.datasets.demo_stain import photograph, random_stain
from dataloader.stain import haematoxylin, optical_density
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings

SMALL = DemoSizes(positives=12, negatives=10, tiles=2, valid=1, test=1, patch=64, tile=160)
SETTINGS = DataSettings("demo")


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "seed 3"
    write_demo_data(folder, seed=3, sizes=SMALL)
    return folder


@pytest.fixture(scope="module")
def fields():
    """(tissue, photograph) of twelve fields, so that each kind of tissue is likely to occur."""
    made = []
    for index in range(12):
        rng = np.random.default_rng([7, index])
        tissue = draw_field(256, rng)
        made.append((tissue, photograph(tissue, random_stain(rng), rng)))
    return made


def test_the_same_seed_draws_the_same_files(drawn, tmp_path):
    write_demo_data(tmp_path / "again", seed=3, sizes=SMALL)
    assert digest(tmp_path / "again") == digest(drawn)


def test_another_seed_draws_other_images_and_more_patches_change_no_tile(drawn, tmp_path):
    write_demo_data(tmp_path / "a", seed=4, sizes=DemoSizes(3, 3, 2, 1, 1, 64, 160))
    write_demo_data(tmp_path / "b", seed=3, sizes=DemoSizes(3, 3, 2, 1, 1, 64, 160))
    known, other, fewer = digest(drawn), digest(tmp_path / "a"), digest(tmp_path / "b")
    assert other["tiles/tile_00.png"] != known["tiles/tile_00.png"] == fewer["tiles/tile_00.png"]


def test_the_folder_opens_as_data_with_every_split(drawn):
    splits = open_source(SETTINGS, str(drawn))
    assert splits.train.patch_labels.sum() == 12 and len(splits.train.patch_labels) == 22
    assert set(splits.train.patch_shapes) == {(64, 64)}
    assert len(splits.train.tile_ids) == 2 and len(splits.valid.tile_ids) == 1 and list(splits.test) == ["test"]
    label = splits.valid.annotation(0)
    assert label.inst_map.shape == splits.valid.read_tile(0).image.shape[:2] == (160, 160)
    assert label.inst_map.max() > 5
    assert splits.train_annotated.annotation(1).inst_map.max() > 0


def test_ids_run_from_one_and_each_nucleus_is_one_piece(fields):
    for tissue, _ in fields:
        ids = np.unique(tissue.inst_map)
        np.testing.assert_array_equal(ids, np.arange(len(ids)))
        for inst_id in ids[1:]:
            assert ndimage.label(tissue.inst_map == inst_id)[1] == 1


def test_sizes_and_crowding_are_those_of_tissue_at_a_quarter_micrometre(fields):
    areas = np.concatenate([np.bincount(tissue.inst_map.ravel())[1:] for tissue, _ in fields])
    assert len(areas) > 250
    low, middle, high = np.percentile(areas, [5, 50, 95])
    assert 100 < low < 260 < middle < 600 < high < 1100
    touching = 0
    for tissue, _ in fields:
        left, right = tissue.inst_map[:, :-1], tissue.inst_map[:, 1:]
        touching += len(np.unique(left[(left > 0) & (right > 0) & (left != right)]))
    assert touching > 0.05 * len(areas)


def test_nuclei_look_like_their_labels_and_colours_like_stain(fields):
    inside = np.concatenate([haematoxylin(image)[tissue.inst_map > 0] for tissue, image in fields])
    tissue_only = [(t.inst_map == 0) & (optical_density(i).sum(-1) > 0.25) for t, i in fields]
    outside = np.concatenate([haematoxylin(i)[mask] for (_, i), mask in zip(fields, tissue_only, strict=True)])
    assert inside.mean() > outside.mean() + 0.2
    for tissue, image in fields:
        density = optical_density(image)[tissue.inst_map > 0].mean(0)
        assert density[1] > density[0] > 0.1 and density[1] > density[2], "nuclei absorb green most, as real ones do"
    greens = [optical_density(image)[..., 1].mean() for _, image in fields]
    assert max(greens) > 1.3 * min(greens), "stains must differ between images"


def test_positive_patches_hold_a_dark_nucleus_and_negatives_do_not(drawn):
    train = open_source(SETTINGS, str(drawn)).train
    score = [np.percentile(cv2.blur(haematoxylin(train.read_patch(i).image), (9, 9)), 99) for i in range(22)]
    assert np.mean(score[:12]) > np.mean(score[12:]) + 0.1


def test_a_field_without_nuclei_has_none():
    assert not draw_field(200, np.random.default_rng(1), nuclei=False).inst_map.any()


def test_drawn_data_is_kept_and_a_torn_drawing_is_finished(drawn, tmp_path, monkeypatch):
    marks = {path: path.stat().st_mtime_ns for path in drawn.rglob("*.png")}
    open_source(SETTINGS, str(drawn))
    assert marks == {path: path.stat().st_mtime_ns for path in drawn.rglob("*.png")}
    monkeypatch.setattr("dataloader.datasets.demo.DemoSizes", lambda: SMALL)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "demo.json").write_text(json.dumps({"version": DEMO_VERSION, "complete": False}))
    assert len(open_source(SETTINGS, str(torn)).train.tile_ids) == 2
    assert json.loads((torn / "demo.json").read_text())["complete"]


def test_foreign_folders_and_other_versions_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DatasetError, match="other files"):
        open_source(SETTINGS, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "demo.json").write_text('{"version": 0, "complete": true}')
    with pytest.raises(DatasetError, match="another version"):
        open_source(SETTINGS, str(tmp_path))
    (tmp_path / "demo.json").write_text("{torn")
    with pytest.raises(DatasetError, match="cannot be read"):
        open_source(SETTINGS, str(tmp_path))


def test_a_file_in_place_of_the_folder_is_not_told_to_be_removed(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DatasetError, match=r"mine\.txt is a file: give a new or empty folder"):
        open_source(SETTINGS, str(tmp_path / "mine.txt"))


def test_another_scale_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"0\.5"):
        open_source(DataSettings("demo", mpp=0.5), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
