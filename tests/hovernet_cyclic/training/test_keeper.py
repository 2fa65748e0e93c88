"""What ends a run changes nothing: it is killed over and over, asked to stop, its files are torn, the disk is full."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import config
from hovernet_cyclic.training.run_dir import RunDir

REPOSITORY = Path(__file__).parents[3]
MORTAL = Path(__file__).with_name("mortal_runs.py")


def curves(run):
    """(tag, step) -> value of all scalars in the log; each may stand there once."""
    found = {}
    for path in sorted(run.path.glob("tensorboard/events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
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
