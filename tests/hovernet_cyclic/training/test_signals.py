"""A request to stop is heard: at once, or where the run next can, and never lost."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import config
from hovernet_cyclic.training import signals
from hovernet_cyclic.training.run_dir import RunDir
from hovernet_cyclic.training.signals import HeedfulSegmenter, Preempted, StopRequest, listening, stop_request

REPOSITORY = Path(__file__).parents[3]
STOPPED = Path(__file__).with_name("stopped_runs.py")
RAISED = {signal.SIGTERM: Preempted, signal.SIGINT: KeyboardInterrupt}


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """A shell leaves them ignored in what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=RAISED, ids=lambda number: number.name)
def number(request):
    return request.param


def ask(number):
    os.kill(os.getpid(), number)


def test_outside_of_training_it_ends_the_work_at_once(number):
    with listening() as stop, pytest.raises(RAISED[number]) as raised:
        assert stop_request() is stop and not stop.is_asked
        ask(number)
        pytest.fail("it was not heard")
    assert raised.type is RAISED[number] and stop.is_asked


def test_in_training_it_is_noted_and_heard_where_the_run_asks(number):
    with listening() as stop, pytest.raises(RAISED[number]) as raised, stop.deferred():
        ask(number)
        assert stop.is_asked, "and this line was reached"
        stop.heed()
    assert raised.type is RAISED[number]


def test_what_something_swallowed_is_heard_at_the_next_occasion(number):
    with listening() as stop:
        with contextlib.suppress(KeyboardInterrupt):  # as a library might
            ask(number)
        with pytest.raises(RAISED[number]), stop.deferred():
            pytest.fail("training began all the same")


def test_a_second_ctrl_c_does_not_wait_and_a_second_sigterm_does(monkeypatch):
    monkeypatch.setattr(signals, "SAME_S", 0.0)
    with listening() as stop, stop.deferred():
        ask(signal.SIGTERM)
        ask(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) as raised:
            ask(signal.SIGINT)
    assert raised.type is KeyboardInterrupt


def test_a_signal_that_comes_twice_at_once_is_one(number):
    """torchrun passes on what the terminal or the cluster has told all."""
    with listening(), pytest.raises(RAISED[number]) as raised:
        with contextlib.suppress(KeyboardInterrupt):
            ask(number)
        ask(number)  # no second exception on the way out
        with stop_request().deferred():
            pytest.fail("it was forgotten")
    assert raised.type is RAISED[number]


def test_a_signal_that_is_still_on_its_way_is_waited_for():
    with listening() as stop, stop.deferred():
        timer = threading.Timer(0.2, ask, [signal.SIGTERM])
        timer.start()
        with pytest.raises(Preempted):
            stop.heed_within(60)
        StopRequest().heed_within(0.01)


def test_handlers_are_left_as_they_were_found(number):
    before = signal.getsignal(number)
    with listening():
        assert signal.getsignal(number) != before
    assert signal.getsignal(number) == before
    assert not stop_request().is_asked


def test_who_was_begun_deaf_to_ctrl_c_stays_deaf():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening() as stop:
            ask(signal.SIGINT)
            assert not stop.is_asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_go_without():
    heard = []

    def elsewhere():
        with listening() as stop:
            heard.append(stop.is_asked)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == [False]


def test_a_segmenter_is_asked_nothing_more_once_the_run_is_to_stop():
    class Counting:
        asked = 0

        def raw_maps(self, image):
            self.asked += 1
            return image

    inner = Counting()
    with listening() as stop, stop.deferred():
        segmenter = HeedfulSegmenter(inner, stop)
        assert segmenter.raw_maps("image") == "image"
        ask(signal.SIGTERM)
        with pytest.raises(Preempted):
            segmenter.raw_maps("image")
    assert inner.asked == 1


def test_a_cluster_that_ends_all_processes_of_a_run_is_told_how_to_go_on(drawn_once, tmp_path, tiny, finished, product):
    """While processes make pseudo masks, and while one scores; then the run goes on as it was told, and is scored."""
    log_dir, recipe = tmp_path / "run", dataclasses.replace(tiny(config.folder()), log_dir=str(tmp_path / "run"))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    command = [sys.executable, str(STOPPED), str(drawn_once), str(log_dir), str(tmp_path / "recipe.json")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (first, said), (second, said_then), (third, said_last) = json.loads(done.stdout.splitlines()[-1])
    go_on = f"Stopped by SIGTERM. To go on: {sys.executable} {REPOSITORY / 'run_train.py'} --recipe=stopped"
    for code, text in ((first, said), (second, said_then)):
        assert code == 0 and "Traceback" not in text, text
        last = text.splitlines()[-1]
        assert last.startswith(go_on) and f"--log_dir={log_dir}" in last and last.count("--resume") == 1
        assert last.endswith(" --resume")
    assert "The network: " not in said and "The network: " in said_then
    assert third == 0 and "cycle 2" in said_last and (log_dir / "scores.json").exists()
    mine, theirs = product(RunDir(log_dir)), product(finished)
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():  # nan, an unknown score, equals itself here
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)
