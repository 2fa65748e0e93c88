"""What ends a run changes nothing: it is killed over and over, asked to stop, its files are torn, the disk is full."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import config
from hovernet_cyclic.core.errors import CheckpointError
from hovernet_cyclic.training import cyclic, keeper, patch_score
from hovernet_cyclic.training.keeper import read_state
from hovernet_cyclic.training.optimiser import OneCycleAdamW
from hovernet_cyclic.training.run_dir import RunDir
from hovernet_cyclic.training.signals import Preempted, listening
from models.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).parents[3]
MORTAL = Path(__file__).with_name("mortal_runs.py")


def curves(run):
    """(tag, step) -> value of all scalars in the log but the time spent waiting; each may stand there once."""
    found = {}
    for path in sorted(run.path.glob("tensorboard/events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if not len(value.tensor.float_val) or value.tag.endswith("waiting_for_data"):
                    continue
                assert (value.tag, event.step) not in found, "logged twice"
                found[value.tag, event.step] = value.tensor.float_val[0]
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=str(name))


@pytest.fixture
def die_often(tmp_path, drawn_once):
    """die_often(kind, recipe, seed) -> (the RunDir of a run that was killed time and again, where each time)."""

    def died(kind, recipe, seed):
        (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
        words = [kind, str(drawn_once), str(tmp_path / "run"), str(tmp_path / "recipe.json"), str(seed)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(MORTAL), *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return RunDir(tmp_path / "run"), json.loads(done.stdout.splitlines()[-1])

    return died


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not(die_often, tiny, finished, product):
    run, deaths = die_often("cycles", tiny(config.folder()), 1)
    assert len(deaths) == 12 and {stage for _, _, stage, _ in deaths} == {
        "front_end",
        "pseudo_masks",
        "back_end",
        "judge",
    }
    assert_same(product(run), product(finished))
    assert_same(curves(run), curves(finished))
    for name in ("cycle_1/gallery.png", "cycle_2/gallery.png"):
        assert (run.path / name).read_bytes() == (finished.path / name).read_bytes()


@pytest.fixture
def ask_to_stop(monkeypatch):
    """ask_to_stop(owner, name, number) -> this process is sent SIGTERM in the number-th call of owner.name."""

    def patched(owner, name, number):
        honest, calls = getattr(owner, name), []

        def interrupted(*arguments, **options):
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return honest(*arguments, **options)

        monkeypatch.setattr(owner, name, interrupted)

    return patched


def test_a_run_that_is_asked_to_stop_saves_where_it_stands_and_goes_on_from_there(
    ask_to_stop, monkeypatch, train, drawn_once, tmp_path, finished, product
):
    stands = []
    for owner, name, number in (
        (OneCycleAdamW, "step", 1),
        (cyclic, "read_activation", 2),
        (cyclic, "tile_candidates", 1),
        (OneCycleAdamW, "step", 2),
        (patch_score, "segment", 1),
        (OneCycleAdamW, "step", 3),
    ):
        ask_to_stop(owner, name, number)
        with listening(), pytest.raises(Preempted):
            train(drawn_once, tmp_path / "run", resume=bool(stands))
        monkeypatch.undo()
        run = RunDir(tmp_path / "run")
        stands.append(tuple(load_checkpoint(run.state).position[name] for name in ("cycle", "stage", "part", "step")))
    assert stands == [
        (1, "front_end", 0, 1),
        (1, "pseudo_masks", 0, 0),
        (1, "pseudo_masks", 0, 0),
        (1, "back_end", 1, 1),
        (1, "judge", 2, 0),
        (2, "back_end", 0, 1),
    ]
    run = train(drawn_once, tmp_path / "run", resume=True)
    assert_same(product(run), product(finished))
    assert_same(curves(run), curves(finished))


@pytest.fixture(scope="module")
def stopped_once(train, drawn_once, tmp_path_factory):
    """{cycle: folder of a run that was stopped in that cycle, after the first step of the back end's second part}."""
    folders = {}
    for cycle in (1, 2):
        folders[cycle] = tmp_path_factory.mktemp("stopped") / "run"
        honest, steps = OneCycleAdamW.step, []

        def interrupted(*arguments, last=4 * cycle, steps=steps, honest=honest):
            steps.append(1)
            if len(steps) == last:
                os.kill(os.getpid(), signal.SIGTERM)
            return honest(*arguments)

        with pytest.MonkeyPatch.context() as patched, listening(), pytest.raises(Preempted):
            patched.setattr(OneCycleAdamW, "step", interrupted)
            train(drawn_once, folders[cycle])
    return folders


def torn(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    """One bit of a weight is another: torch.load would not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [torn, flipped, emptied, Path.unlink])
def test_a_state_that_is_not_whole_is_found_out_and_the_one_before_is_taken(spoil, stopped_once, tmp_path):
    run = RunDir(shutil.copytree(stopped_once[2], tmp_path / "run"))
    said = []
    assert read_state(run, said.append)[0] == run.state and not said
    before = load_checkpoint(run.previous_state).position
    spoil(run.state)
    path, stored = read_state(run, said.append)
    assert path == run.previous_state and stored.position == before
    (line,) = said
    assert str(run.state) in line and "going on from state.previous.tar" in line
    spoil(run.previous_state)
    if spoil is Path.unlink:
        assert read_state(run, said.append) is None
        return
    with pytest.raises(CheckpointError, match=r"state\.tar and .*state\.previous\.tar: no state of this run is whole"):
        read_state(run, said.append)


def test_a_run_goes_on_from_the_state_before_and_keeps_it_until_there_is_a_new_one(
    stopped_once, tmp_path, train, drawn_once, finished, product, monkeypatch
):
    run = RunDir(shutil.copytree(stopped_once[1], tmp_path / "run"))
    flipped(run.state)
    before = run.previous_state.read_bytes()
    honest, kept = keeper.save_checkpoint, []

    def watched(path, checkpoint):
        if path.name.startswith("state"):
            kept.append(run.previous_state.read_bytes() == before)
        return honest(path, checkpoint)

    monkeypatch.setattr(keeper, "save_checkpoint", watched)
    train(drawn_once, run.path, resume=True)
    assert kept[:2] == [True, True], "the damaged state must not take the place of the sound one"
    assert_same(product(run), product(finished))
    assert_same(curves(run), curves(finished))


def other_masks(folder):
    first, second = sorted(folder.iterdir())
    shutil.copy(first, second)


def no_masks(folder):
    shutil.rmtree(folder)


def torn_mask(folder):
    torn(sorted(folder.iterdir())[0])


@pytest.mark.parametrize(("cycle", "spoil"), [(1, other_masks), (2, no_masks), (2, torn_mask)])
def test_pseudo_masks_that_are_not_those_of_the_state_are_made_again(
    cycle, spoil, stopped_once, tmp_path, train, drawn_once, finished, product
):
    """Also those that had the word of a teacher that has learnt since: it goes back to where it was, too."""
    run = RunDir(shutil.copytree(stopped_once[cycle], tmp_path / "run"))
    spoil(run.pseudo_masks(cycle))
    train(drawn_once, run.path, resume=True)
    assert_same(product(run), product(finished))
    assert_same(curves(run), curves(finished))


def test_a_state_of_a_version_that_knew_no_positions_goes_on_with_the_next_cycle(
    train, drawn_once, tmp_path, finished, product
):
    run = train(drawn_once, tmp_path / "run", num_cycles=1)
    stored = load_checkpoint(run.state)
    old = {name: value for name, value in vars(stored).items() if name not in ("position", "best")}
    old["rng"] = {name: stored.rng[name] for name in ("best_cycle", "best_score", "teacher_updates")}
    torch.save({"format": "hovernet-cyclic", **old, "format_version": 1, "stage": "back_end"}, run.state)
    run = train(drawn_once, run.path, resume=True)
    assert_same(product(run), product(finished))
    assert_same(curves(run), curves(finished))


def content(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and "events" not in path.name}


@pytest.mark.parametrize(
    "full", [(torch, "save"), (np, "savez_compressed"), (Path, "write_text"), (Path, "write_bytes")]
)
def test_a_full_disk_loses_nothing_and_leaves_no_half_file(
    full, stopped_once, tmp_path, train, drawn_once, finished, product, monkeypatch
):
    run, file = RunDir(shutil.copytree(stopped_once[1], tmp_path / "run")), None

    def refuse(first, second=None, **_):
        nonlocal file
        file = first if full[0] is Path else None
        if file is not None:
            file.touch()
        else:
            (second if full[1] == "save" else first).write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    states = {path: path.read_bytes() for path in (run.state, run.previous_state)}
    with monkeypatch.context() as patched, pytest.raises((CheckpointError, OSError), match="No space left"):
        patched.setattr(*full, refuse)
        train(drawn_once, run.path, resume=True)
    left = content(run)
    assert not [path for path in left if "partial" in path.name or "tmp" in path.name or "next" in path.name]
    assert run.state in left and (full[1] != "save" or states.items() <= left.items())
    run = train(drawn_once, run.path, resume=True)
    assert_same(product(run), product(finished))


@pytest.mark.parametrize(("every_s", "share", "saves"), [(0.0, math.inf, 10), (1e9, math.inf, 6), (0.0, 1e-9, 7)])
def test_a_state_is_saved_from_time_to_time_and_after_each_stage(
    every_s, share, saves, train, drawn_once, tmp_path, monkeypatch
):
    """Each step, none, or the first alone: it was found to take too much of the time."""
    honest, saved = keeper.Keeper.save, []
    monkeypatch.setattr(keeper, "SAVE_EVERY_S", every_s)
    monkeypatch.setattr(keeper, "SHARE_OF_TIME", share)
    monkeypatch.setattr(keeper.Keeper, "save", lambda self: (saved.append(self.position), honest(self)))
    train(drawn_once, tmp_path / "run", num_cycles=1)
    assert len(saved) == len(set(saved)) == saves
