"""Scores of a finished run."""

import json
import shutil

import numpy as np
import pytest

from hovernet_cyclic.core.settings import DataSettings, TrainRecipe
from hovernet_cyclic.core.types import Annotation, ImageTile, RawMaps
from hovernet_cyclic.training.evaluate import score_run, score_source


class Annotated:
    """Two tiles of two square nuclei each. The grey value of a tile is its index."""

    tile_ids = ("a", "b")

    def read_tile(self, index):
        return ImageTile(self.tile_ids[index], np.full((64, 64, 3), index, np.uint8), 0.25)

    def annotation(self, index):
        inst_map = np.zeros((64, 64), np.int32)
        inst_map[4:24, 4:24], inst_map[36:56, 36:56] = 1, 2
        return Annotation(self.tile_ids[index], inst_map)


class Segmenter:
    """Finds both nuclei of the first tile exactly, one of the second."""

    def raw_maps(self, image):
        np_prob = np.zeros((64, 64), np.float32)
        np_prob[4:24, 4:24] = 1
        if image[0, 0, 0] == 0:
            np_prob[36:56, 36:56] = 1
        return RawMaps(np_prob, np.zeros((64, 64, 2), np.float32))


def test_scores_by_hand():
    found = score_source(Segmenter(), Annotated(), TrainRecipe("test", DataSettings("folder")))
    assert found["tiles"]["a"]["dice"] == pytest.approx(1) and found["tiles"]["a"]["pq"] == pytest.approx(1)
    # one of two equal nuclei: Dice 2 * 400 / (400 + 800), AJI 400 / 800, PQ 1 / (1 + .5)
    second = found["tiles"]["b"]
    assert [second[name] for name in ("dice", "aji", "pq")] == pytest.approx([2 / 3, 1 / 2, 2 / 3])
    assert found["mean"]["aji"] == pytest.approx(0.75)


def test_a_run_is_scored_on_every_annotated_split_and_after_every_cycle(finished, drawn_once, tmp_path, capsys):
    run = shutil.copytree(finished.path, tmp_path / "run")
    score_run(str(run), str(drawn_once), "cpu")
    scores = json.loads((run / "scores.json").read_text())
    assert {split: set(arms) for split, arms in scores.items()} == {
        s: {"cycle 1", "cycle 2"} for s in ("valid", "test")
    }
    for arms in scores.values():
        for arm in arms.values():
            assert all(0 <= arm["mean"][name] <= 1 for name in ("dice", "aji", "pq")) and len(arm["tiles"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["split", "arm", "dice", "aji", "pq"] and len(lines) == 5


def test_without_drawn_masks_nothing_is_reported(finished, own_data, tmp_path, capsys):
    for split in ("valid", "test"):
        shutil.rmtree(own_data / split / "labels")
    run = shutil.copytree(finished.path, tmp_path / "run")
    score_run(str(run), str(own_data), "cpu")
    assert not (run / "scores.json").exists() and capsys.readouterr().out == ""
