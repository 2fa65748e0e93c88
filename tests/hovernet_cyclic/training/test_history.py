"""What happened in a run, line by line."""

import json
from pathlib import Path

import numpy as np
import pytest

from hovernet_cyclic.training.history import History, count_data, last_of, losses_of, read_history


def test_what_is_added_is_read_back_in_order(tmp_path):
    path = tmp_path / "new" / "history.jsonl"
    history = History(path)
    history.add("start", time=1, command=["run_train.py", "--data_dir=<ä&\"'>"], device="one CPU")
    history.add("loss", stage="s", curves="back_end", step=3, parts={"np_bce": 0.1 + 0.2, "np_dice": float("nan")})
    start, loss = read_history(path)  # before it is closed: another process may read, and this one be killed
    history.close()
    assert start["command"][1] == "--data_dir=<ä&\"'>"
    assert loss["parts"] == {"np_bce": 0.1 + 0.2, "np_dice": None}, "no digit is lost, and nan is unknown"
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_torn_last_line_costs_that_line_alone(tmp_path):
    path = tmp_path / "history.jsonl"
    history = History(path)
    for step in range(3):
        history.add("loss", stage="s", curves="front_end", step=step, parts={"patch": float(step)})
    history.close()
    path.write_bytes(path.read_bytes()[:-9])
    assert [event["step"] for event in read_history(path)] == [0, 1]
    resumed = History(path)
    resumed.add("loss", stage="s", curves="front_end", step=1, parts={"patch": 7.0})
    resumed.add("loss", stage="s", curves="front_end", step=2, parts={"patch": 8.0})
    resumed.close()
    steps = losses_of(read_history(path))["front_end"]
    assert {step: loss["parts"]["patch"] for step, loss in steps.items()} == {0: 0.0, 1: 7.0, 2: 8.0}


def test_lines_of_another_kind_are_no_events(tmp_path):
    path = tmp_path / "history.jsonl"
    lines = ["[1]", '{"kind": 3}', '{"kind": "stage"}', '{"kind": "loss", "step": 1}', "\udcff", ""]
    lines += ['{"kind": "data", "tiles": 1}', '{"kind": "data", "tiles": 2}']
    path.write_text("\n".join(lines), errors="surrogateescape")
    events = read_history(path)
    assert (
        len(events) == 2 and last_of(events, "data") == {"kind": "data", "tiles": 2} and last_of(events, "start") == {}
    )
    assert read_history(tmp_path / "missing.jsonl") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_ends_the_record_and_not_the_run():
    history = History(Path("/dev/full"))
    history.add("data", tiles=1)
    history.add("data", tiles=2)
    history.close()
    assert history.fault.startswith("/dev/full: cannot be written (No space left on device)")


def test_a_process_that_writes_nothing_leaves_nothing():
    history = History(None)
    history.add("data", tiles=1)
    history.close()
    assert history.fault == ""


class Source:
    tile_ids = ("a", "b", "c")
    patch_labels = np.array([[1.0], [0.0], [1.0], [0.0], [1.0]], np.float32)
    patch_groups = ("x", "x", "y", "z", "z")


def test_the_data_by_hand():
    assert count_data(Source(), [0, 1, 3, 4], [2], ["b"]) == {
        "tiles": 3,
        "patches": 5,
        "positive": 3,
        "negative": 2,
        "groups": 3,
        "held_groups": 1,
        "held_patches": 1,
        "drawn": ["b"],
    }
