"""What a run logged after its last save is taken out of its log; the rest stays as it was."""

import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

from hovernet_cyclic.training.curves import forget_later


@pytest.fixture
def logged(tmp_path):
    """A folder with steps 0 to 4 of two curves, and a picture of each of two cycles."""
    writer = SummaryWriter(str(tmp_path))
    for step in range(5):
        writer.add_scalar("front_end/patch", step / 2, step)
        writer.add_scalar("back_end/np_bce", step / 4, step)
    for cycle in (1, 2):
        writer.add_image("gallery/tiles", np.zeros((3, 8, 8), np.uint8), cycle)
    writer.close()
    return tmp_path


def steps(folder):
    found = {}
    for path in sorted(folder.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


def test_each_curve_is_cut_where_it_goes_on(logged):
    forget_later(logged, {"front_end": 5, "back_end": 2}, cycle=2)
    assert steps(logged) == {"front_end/patch": [0, 1, 2, 3, 4], "back_end/np_bce": [0, 1], "gallery/tiles": [1]}
    assert len(list(logged.iterdir())) == 1


def test_a_file_with_nothing_to_forget_is_not_touched(logged):
    (path,) = logged.iterdir()
    before = path.stat().st_ino, path.read_bytes()
    forget_later(logged, {"front_end": math.inf, "back_end": 5}, cycle=3)
    assert (path.stat().st_ino, path.read_bytes()) == before


def test_a_record_that_was_cut_off_is_no_obstacle(logged):
    (path,) = logged.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    forget_later(logged, {"front_end": 1, "back_end": 0}, cycle=9)
    assert steps(logged) == {"front_end/patch": [0], "gallery/tiles": [1]}


def test_a_run_without_a_log_has_nothing_to_forget(tmp_path):
    forget_later(tmp_path / "tensorboard", {}, cycle=1)
    assert not list(tmp_path.iterdir())
