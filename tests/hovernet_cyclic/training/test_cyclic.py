"""Whole runs: no drawn mask is opened or felt, stopping and going on changes nothing."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from hovernet_cyclic.core.errors import CheckpointError, DatasetError, TrainingError
from hovernet_cyclic.core.settings import PseudoMaskSettings
from hovernet_cyclic.training import back_end, cyclic, front_end
from hovernet_cyclic.training.run_dir import RunDir
from models.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).parents[3]

# Installed before anything is imported: what Python opens or lists from then on, in this process.
AUDITED = """
import dataclasses, json, os, sys
seen = []
names = ("open", "os.listdir", "os.scandir")
sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event in names else None)

import config, run_train

def opened_labels(data_dir):
    paths = [os.path.relpath(path, data_dir).split(os.sep) for path in seen if path.startswith(data_dir)]
    assert any(path[-1].endswith(".png") for path in paths), "the hook saw no image opened: it proves nothing"
    masks = {"labels", "Labels", "masks", "mask", "Instance_mask", ".converted"}
    return ["/".join(path) for path in paths if masks & set(path)]

def run(recipe, data_dir, log_dir, cycles, *options):
    small = config.RECIPES[recipe]()
    front_end = dataclasses.replace(small.front_end, steps_first=2, steps_later=2, batch_size=4)
    shape = {"batch_size": 2, "patch_shape": (64, 64)}
    back_end = dataclasses.replace(small.back_end, steps=2, steps_later=2, widen_rounds=1, **shape)
    small = dataclasses.replace(small, front_end=front_end, back_end=back_end, num_cycles=cycles)
    config.RECIPES["audited"] = lambda: small
    seen.clear()
    arguments = ["--recipe=audited", f"--data_dir={data_dir}", f"--log_dir={log_dir}", "--gpu=cpu", *options]
    assert run_train.main(arguments) == 0
    return opened_labels(data_dir)

if __name__ == "__main__":
    own, bench, paper, logs = sys.argv[1:]
    found = {"own": run("folder", own, logs + "/own", 2)}
    found["bench"] = run("benchmark", bench, logs + "/bench", 1, "--no_scores")
    found["monusac"] = run("monusac", paper, logs + "/monusac", 1)
    for name in ("ccrcc", "consep"):
        found[name] = run(name, paper, logs + "/" + name, 1, "--no_scores")

    # one planted line, in the middle of training
    from hovernet_cyclic.training import cyclic
    honest = cyclic.patch_accuracy
    def dishonest(*arguments):
        open(own + "/valid/labels/valid_00.png", "rb").close()
        return honest(*arguments)
    cyclic.patch_accuracy = dishonest
    found["planted"] = run("folder", own, logs + "/planted", 1, "--no_scores")

    seen.clear()
    from dataloader.label_files import read_label_map
    read_label_map(own + "/valid/labels/valid_00.png")
    found["reader"] = [path for path in seen if "/labels/" in path]

    from dataloader.datasets import open_source
    for name in ("monusac", "ccrcc", "consep"):
        splits = open_source(config.RECIPES[name]().data, paper)
        seen.clear()
        next(iter(splits.test.values())).annotation(0)
        found["reader of " + name] = opened_labels(paper)
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def assert_same():
    def same(one, other):
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)

    return same


def test_an_image_level_run_opens_no_label_file(own_data, bench_data, paper_data, tmp_path):
    script = tmp_path / "audited.py"
    script.write_text(AUDITED)
    command = [sys.executable, str(script), str(own_data), str(bench_data), str(paper_data)]
    command.append(str(tmp_path / "logs"))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(found[name] == [] for name in ("own", "bench", "monusac", "ccrcc", "consep"))
    assert set(found["planted"]) == {"valid/labels/valid_00.png"}, "a run that opens one must be caught"
    readers = ("reader", "reader of monusac", "reader of ccrcc", "reader of consep")
    assert all(found[name] for name in readers), "the toolkit's own readers must be visible to the hook"
    # the scores did come from the drawn masks: in a process of their own
    scores = json.loads((tmp_path / "logs" / "own" / "scores.json").read_text())
    assert set(scores) == {"valid", "test"} and set(scores["valid"]) == {"cycle 1", "cycle 2"}
    scores = json.loads((tmp_path / "logs" / "monusac" / "scores.json").read_text())
    assert set(scores) == {"same_organ", "different_organ"}


@pytest.mark.parametrize("fate", ["garbage", "deleted"])
def test_drawn_masks_cannot_be_felt(fate, own_data, tmp_path, train, finished, product, assert_same):
    """The second guard: OpenCV opens files unseen by an audit hook, but what is not there cannot help."""
    spoil(own_data, fate)
    assert_same(product(train(own_data, tmp_path / "run")), product(finished))


def test_the_second_guard_sees_a_reader_that_the_hook_cannot(own_data, tmp_path, train, finished, product, monkeypatch):
    honest = cyclic.tile_candidates

    def dishonest(tile, *arguments):
        label = cv2.imread(str(own_data / "labels" / f"{tile.tile_id}.png"), cv2.IMREAD_UNCHANGED)
        found = honest(tile, *arguments)
        for candidate in found.candidates:
            x, y = candidate.contour[0, 0]
            candidate.quality *= 2.0 if label is not None and label[y, x] else 1.0
        return found

    monkeypatch.setattr(cyclic, "tile_candidates", dishonest)
    with_labels = product(train(own_data, tmp_path / "with", num_cycles=1))
    spoil(own_data, "deleted")
    without = product(train(own_data, tmp_path / "without", num_cycles=1))
    assert any(not np.array_equal(with_labels[name], without[name]) for name in without if "pseudo_masks" in name)


def spoil(data_dir, fate):
    folders = [path for path in data_dir.rglob("labels") if path.is_dir()]
    assert len(folders) == 3
    for folder in folders:
        if fate == "deleted":
            shutil.rmtree(folder)
        else:
            for path in folder.iterdir():
                path.write_bytes(b"never to be read")


def test_each_stage_is_given_the_patches_that_are_its_own(drawn_once, tmp_path, train, monkeypatch):
    """The classifier learns from patches that are not held out, the student from canvases of the negative ones."""
    given = {}

    def spied(name, position):
        honest = getattr(cyclic, name)

        def spy(*arguments):
            given[name] = arguments[position]
            return honest(*arguments)

        monkeypatch.setattr(cyclic, name, spy)

    for name, position in (("PatchSampler", 1), ("TileSampler", 1), ("patch_accuracy", 2), ("score_on_patches", 2)):
        spied(name, position)
    train(drawn_once, tmp_path / "run", num_cycles=1)
    source, negatives = given["TileSampler"]
    learnt, held = set(given["PatchSampler"]), set(given["score_on_patches"])
    assert held and learnt | held == set(range(32)) and not learnt & held
    assert set(given["patch_accuracy"]) == held
    assert set(negatives) == {i for i in learnt if source.patch_labels[i, 0] == 0} and len(negatives) > 5


def test_the_encoder_goes_round(drawn_once, tmp_path, train, finished, monkeypatch):
    """The student begins a cycle with the classifier's encoder, the classifier the next one with the teacher's."""

    def same_encoder(one, other):
        shared = set(one) & set(other)
        return len(shared) > 50 and all(torch.equal(one[name], other[name]) for name in shared)

    handed_over = []
    honest = cyclic.teach_student

    def spy(work, cycle, part):
        networks = work.networks
        handed_over.append(same_encoder(networks.classifier.state_dict(), networks.student.state_dict()))
        return honest(work, cycle, part)

    monkeypatch.setattr(cyclic, "teach_student", spy)
    train(drawn_once, tmp_path / "run", num_cycles=1)
    assert handed_over == [True, False], "in the second part of the back end the student has moved on"
    state = load_checkpoint(finished.state)
    assert same_encoder(state.classifier, state.teacher)


def test_the_teacher_is_asked_from_as_many_sides_as_the_recipe_says(train, drawn_once, tmp_path, monkeypatch):
    asked, honest = [], cyclic.MeanOfViews

    def watched(segmenter, views):
        asked.append(views)
        return honest(segmenter, views)

    monkeypatch.setattr(cyclic, "MeanOfViews", watched)
    train(drawn_once, tmp_path / "run", pseudo_masks=PseudoMaskSettings(teacher_views=2))
    assert set(asked) == {2}


def test_the_encoder_goes_round_as_the_recipe_says(train, drawn_once, tmp_path, monkeypatch):
    """Two runs of two cycles: what the copies of encoders were made into."""
    copies = []
    honest = cyclic.copy_encoder

    def watched(source, target):
        copies.append(type(target).__name__)
        honest(source, target)

    monkeypatch.setattr(cyclic, "copy_encoder", watched)
    for name, to_student, to_classifier in (("a", "first", True), ("b", "none", False)):
        train(drawn_once, tmp_path / name, to_student=to_student, to_classifier=to_classifier)
    assert copies == ["HoVerNet", "Classifier", "Classifier"]


def test_the_folder_of_a_run_is_as_described(finished):
    names = {str(path.relative_to(finished.path)) for path in finished.path.rglob("*") if path.is_file()}
    expected = {"state.tar", "state.previous.tar", "net.tar", "cycles.json", "history.jsonl", "report.html"}
    for cycle in (1, 2):
        expected |= {f"cycle_{cycle}/{name}" for name in ("net.tar", "gallery.png", "gallery.json")}
        expected |= {f"cycle_{cycle}/pseudo_masks/tile_0{i}.npz" for i in range(2)}
    curves = {name for name in names if name.startswith("tensorboard/")}
    assert len(curves) == 1 and names - curves == expected
    rows = finished.read_json("cycles.json", [])
    assert [row["cycle"] for row in rows] == [1, 2] and rows[0]["kept"] is True
    # The field that is held out lent positive patches alone: what is not known is null, and never nan.
    assert all(0 <= row["recall"] <= 1 and row["found"] >= 0 for row in rows)
    assert all(row[name] is None for row in rows for name in ("specificity", "false", "surplus"))


def test_a_run_that_was_stopped_between_cycles_ends_as_if_it_had_not(
    drawn_once, tmp_path, train, finished, product, assert_same
):
    train(drawn_once, tmp_path / "run", num_cycles=1)
    assert_same(product(train(drawn_once, tmp_path / "run", resume=True)), product(finished))


@pytest.mark.parametrize("stage", ["teach_student", "judge_cycle"])
def test_a_run_that_was_stopped_within_a_cycle_ends_as_if_it_had_not(
    stage, drawn_once, tmp_path, train, finished, product, assert_same, monkeypatch
):
    honest = getattr(cyclic, stage)

    def interrupted(work, cycle, *arguments):
        if cycle == 2:
            raise KeyboardInterrupt
        return honest(work, cycle, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cyclic, stage, interrupted)
        train(drawn_once, tmp_path / "run")
    assert_same(product(train(drawn_once, tmp_path / "run", resume=True)), product(finished))


def collapsing(monkeypatch, in_cycle, in_call=1):
    """From here on, the pseudo masks of one cycle hold no nucleus, from the in_call-th time on that it makes some."""
    honest, calls = cyclic.make_pseudo_masks, []

    def empty(tiles, cycle, *arguments):
        masks = honest(tiles, cycle, *arguments)
        calls.extend([cycle] * (cycle == in_cycle))
        if cycle != in_cycle or len(calls) < in_call:
            return masks
        none = np.zeros(0, np.float32)
        return [replace(mask, inst_map=np.zeros_like(mask.inst_map), confidence=none) for mask in masks]

    monkeypatch.setattr(cyclic, "make_pseudo_masks", empty)


@pytest.mark.parametrize("in_call", [1, 2])
def test_a_cycle_whose_pseudo_masks_collapse_is_rolled_back_and_the_next_one_tries_again(
    in_call, drawn_once, tmp_path, train, finished, monkeypatch
):
    with monkeypatch.context() as patched:
        collapsing(patched, 2, in_call)
        run = train(drawn_once, tmp_path / "run")
    first, second = run.read_json("cycles.json", [])
    assert first == {**finished.read_json("cycles.json", [])[0], "seconds": first["seconds"]}
    assert (second["kept"], second["nuclei"], second["surplus"]) == (False, 0, None)
    assert second["reason"] == "rolled back to cycle 1: its pseudo masks collapsed, they hold no nucleus"
    best, product = load_checkpoint(run.path / "cycle_1" / "net.tar"), load_checkpoint(run.net)
    assert all(torch.equal(product.teacher[name], value) for name, value in best.teacher.items())
    assert (run.path / "cycle_2" / "gallery.png").exists(), "a person wants to see what happened"
    assert not (run.path / "cycle_2" / "net.tar").exists()
    train(drawn_once, tmp_path / "run", resume=True, num_cycles=3)
    third = run.read_json("cycles.json", [])[2]
    assert (
        third["cycle"] == 3 and third["nuclei"] > 0 and third["reason"].startswith(("kept", "rolled back to cycle 1"))
    )


@pytest.mark.parametrize("in_call", [1, 2])
def test_a_first_cycle_whose_pseudo_masks_collapse_ends_the_run_with_what_to_look_at(
    in_call, drawn_once, tmp_path, train, finished, product, assert_same, monkeypatch
):
    with monkeypatch.context() as patched, pytest.raises(TrainingError) as error:
        collapsing(patched, 1, in_call)
        train(drawn_once, tmp_path / "run")
    sentence = str(error.value)
    assert "cycle_1/gallery.png" in sentence and "they hold no nucleus" in sentence and "--view=train" in sentence
    assert (tmp_path / "run" / "cycle_1" / "gallery.png").exists() and not (tmp_path / "run" / "net.tar").exists()
    # nothing of it is left in a run that goes on by other means
    assert_same(product(train(drawn_once, tmp_path / "run", resume=True)), product(finished))


def test_more_nuclei_than_before_is_measured_against_the_last_cycle_that_was_kept(tmp_path):
    work = SimpleNamespace(run=RunDir(tmp_path))
    assert cyclic.nuclei_before(work, 1) is None
    rows = [(1, 100, True), (2, 400, False), (3, 150, True)]
    work.run.write_json("cycles.json", [{"cycle": c, "nuclei": n, "kept": k} for c, n, k in rows])
    assert [cyclic.nuclei_before(work, cycle) for cycle in (1, 2, 3, 4)] == [None, 100, 100, 150]
    work.run.write_json("cycles.json", [{"cycle": 1, "kept": True}])  # of a version that counted none
    assert cyclic.nuclei_before(work, 2) is None


@pytest.mark.parametrize(
    ("module", "loss", "stage"),
    [(front_end, "front_end_loss", "front end"), (back_end, "back_end_loss", "back end 2/2")],
)
def test_a_loss_that_is_not_finite_stops_the_run_with_its_batch_and_the_state_before(
    module, loss, stage, drawn_once, tmp_path, train, finished, product, assert_same, monkeypatch
):
    honest, calls = getattr(module, loss), []

    def astray(*arguments):
        calls.append(1)
        parts = honest(*arguments)
        return {name: value * (float("nan") if len(calls) == 2 else 1) for name, value in parts.items()}

    with monkeypatch.context() as patched, pytest.raises(TrainingError) as error:
        patched.setattr(module, loss, astray)
        train(drawn_once, tmp_path / "run")
    (tmp_path / "run" / "recipe.json").write_text("{}")  # of the front end there was no state yet
    sentence = str(error.value)
    assert sentence.startswith(f"cycle 1 {stage}, step 1: the loss ") and "is nan" in sentence
    assert str(tmp_path / "run" / "bad_batch.npz") in sentence and "learning_rate" in sentence
    with np.load(tmp_path / "run" / "bad_batch.npz") as batch:
        assert str(batch["where"]) == f"cycle 1 {stage}, step 1" and batch["images"].ndim == 4
    (tmp_path / "run" / "bad_batch.npz").unlink()
    assert_same(product(train(drawn_once, tmp_path / "run", resume=True)), product(finished))


def test_a_pool_of_which_a_process_is_killed_is_told_in_a_sentence(drawn_once, tmp_path, train, monkeypatch):
    def killed(*_, **__):
        raise BrokenProcessPool

    monkeypatch.setattr(cyclic, "Parallel", lambda *_, **__: killed)
    with pytest.raises(TrainingError, match=r"out of memory.*--resume"):
        train(drawn_once, tmp_path / "run")


def test_a_finished_run_that_is_resumed_has_nothing_left_to_do(finished, drawn_once, tmp_path, train, monkeypatch):
    shutil.copytree(finished.path, tmp_path / "run")
    (tmp_path / "run" / "net.tar").unlink()
    monkeypatch.setattr(cyclic, "run_cycle", lambda *_: pytest.fail("a cycle was run again"))
    assert train(drawn_once, tmp_path / "run", resume=True).net.exists()


def test_a_run_is_not_resumed_with_another_recipe(finished, drawn_once, tmp_path, train):
    shutil.copytree(finished.path, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"state\.tar.*another recipe"):
        train(drawn_once, tmp_path / "run", resume=True, seed=11)


def test_check_source_reads_every_file_that_training_will(own_data, tiny):
    from config import RECIPES
    from dataloader.datasets import open_source

    recipe = tiny(RECIPES["folder"]())
    source = open_source(recipe.data, str(own_data)).train
    cyclic.check_source(recipe, source)
    for victim in (own_data / "tiles" / "tile_01.png", next((own_data / "patches" / "negative").iterdir())):
        whole = victim.read_bytes()
        victim.write_bytes(whole[:-20])
        with pytest.raises(DatasetError, match=victim.name):
            cyclic.check_source(recipe, open_source(recipe.data, str(own_data)).train)
        victim.write_bytes(whole)
