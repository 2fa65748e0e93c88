"""Where one of several processes fails, all end soon, and one sentence says which and why."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.training.processes import device_of, run_processes

REPOSITORY = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("failing_ranks.py")
SOON = 30  # seconds in which the others must have ended
GO_ON = "What was finished is kept: give --resume to go on."
LAUNCH = (
    "import sys; from hovernet_cyclic.training import processes; "
    "sys.exit(processes.run_processes([sys.executable, *sys.argv[1:]], 2))"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def ended(tmp_path, capfd):
    """ended(fate) -> exit code, stdout, stderr, after checking that nobody stayed behind."""

    def run(fate):
        began = time.monotonic()
        code = run_processes([sys.executable, str(SCRIPT), fate, str(tmp_path)], 2)
        assert time.monotonic() - began < 2 * SOON
        return code, *capfd.readouterr()

    return run


def test_processes_that_end_well_are_one_run_on_the_outside(ended):
    assert ended("well") == (0, "cpu: all are here\n", "")


@pytest.mark.parametrize(
    ("fate", "code", "sentence"),
    [
        (
            "killed",
            1,
            rf"Process 1 of 0 to 1 was ended by SIGKILL \(.*memory.*\), so the others were ended too\. {GO_ON}",
        ),
        ("code", 1, rf"Process 1 of 0 to 1 was ended with exit code 7, so the others were ended too\. {GO_ON}"),
        (
            "bug",
            1,
            rf"Process 1 of 0 to 1 failed, and all end: ValueError: a bug\. Please report it with (.*)\. {GO_ON}",
        ),
        ("memory", 1, rf"Process 1 of 0 to 1 ran out of memory: .*batch_size.*\. {GO_ON}"),
        ("bad file", 2, r"image_1\.png is an empty file: copy or export it again\."),
        ("bad files", 2, r"image_[01]\.png is an empty file: copy or export it again\."),
    ],
)
def test_one_that_fails_takes_the_others_along_and_one_sentence_says_so(ended, fate, code, sentence, tmp_path):
    found, _, err = ended(fate)
    assert found == code
    assert (match := re.fullmatch(sentence, err.rstrip("\n"))), err
    if fate == "bug":
        assert Path(match[1]).parent == tmp_path and "of two lines" in Path(match[1]).read_text()


@pytest.mark.parametrize(
    ("fate", "sentence"),
    [("killed", "Process 0 of 0 to 1 has lost another process"), ("bad file", "image_1.png is an empty file")],
)
def test_under_torchrun_too(fate, sentence, tmp_path):
    """torchrun ends the others itself and adds a report of its own; what we say stands there once."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--monitor_interval=2"]
    command = [*torchrun, str(SCRIPT), fate, str(tmp_path)]  # time enough to say it on a busy machine
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.count(sentence) == 1
    assert 'failing_ranks.py", line' not in done.stderr, "a traceback of ours"


@pytest.fixture
def sleepers(tmp_path):
    """sleepers(fate) -> a launcher whose two processes sleep, and their ids."""
    started = []

    def start(fate="asleep"):
        command = [sys.executable, "-c", LAUNCH, str(SCRIPT), fate, str(tmp_path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        launcher = subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=hear_interrupts)
        started.append(launcher)
        until = time.monotonic() + 90
        while len(list(tmp_path.glob("asleep_*"))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        return launcher, [int(path.name.split("_")[2]) for path in tmp_path.glob("asleep_*")]

    yield start
    for launcher in started:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.communicate()


def hear_interrupts():
    """A process begun in the background of a script ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def all_gone(ids):
    until = time.monotonic() + SOON
    while time.monotonic() < until:
        if not [number for number in ids if Path(f"/proc/{number}").exists()]:
            return True
        time.sleep(0.1)
    return False


def test_ctrl_c_ends_all_with_one_sentence(sleepers):
    launcher, ids = sleepers()
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
    _, err = launcher.communicate(timeout=SOON)
    assert launcher.returncode == 130 and err == f"Stopped. {GO_ON}\n"
    assert len(ids) == 2 and all_gone(ids)


def test_without_their_launcher_they_do_not_go_on(sleepers):
    launcher, ids = sleepers()
    launcher.kill()
    assert len(ids) == 2 and all_gone(ids)


def test_sigterm_is_passed_on(sleepers):
    """These do not hear it and die of it."""
    launcher, ids = sleepers()
    launcher.terminate()
    _, err = launcher.communicate(timeout=SOON)
    assert launcher.returncode == 143 and "Traceback" not in err and all_gone(ids)


def test_all_are_asked_to_stop_while_the_last_work_is_that_of_one(sleepers):
    """It says so, and those that wait for it end as well as it does."""
    launcher, ids = sleepers("stopped")
    os.killpg(launcher.pid, signal.SIGTERM)  # and the launcher passes it on: each hears it twice
    out, err = launcher.communicate(timeout=SOON)
    assert (launcher.returncode, out, err) == (0, "go on\n", "") and all_gone(ids)


@pytest.mark.parametrize("ask", [os.killpg, os.kill], ids=["terminal", "launcher alone"])
def test_ctrl_c_waits_until_all_have_saved(sleepers, monkeypatch, tmp_path, ask):
    monkeypatch.setattr(sys.modules[__name__], "LAUNCH", LAUNCH.replace("sys.exit", "processes.GRACE = 0.5; sys.exit"))
    launcher, ids = sleepers("saving")
    ask(launcher.pid, signal.SIGINT)
    _, err = launcher.communicate(timeout=SOON)
    assert launcher.returncode == 130 and err == f"Stopped. {GO_ON}\n" and all_gone(ids)
    assert sorted(path.name for path in tmp_path.glob("saved_*")) == ["saved_0", "saved_1"]


def test_each_process_of_a_machine_has_a_device_of_its_own(monkeypatch):
    import torch

    assert device_of("cpu", 3, 4).torch_device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert [device_of(None, place, 4).torch_device.index for place in range(4)] == [0, 1, 2, 3]
    assert [device_of("2,0", place, 2).torch_device.index for place in range(2)] == [2, 0]
    with pytest.raises(RecipeError, match="3 processes run on this machine: name a GPU for each"):
        device_of("1,2", 0, 3)
