"""What a person sees of a stage."""

import re
import sys

import pytest

from hovernet_cyclic.training import progress
from hovernet_cyclic.training.progress import Meter, ProgressLine, Spent, clock, fitting


class Terminal:
    """Keeps what is written to it, and says that it is a terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.written = ""

    def write(self, text):
        self.written += text

    def flush(self):
        pass

    def isatty(self):
        return True


def half_way(images=4):
    meter = Meter("cycle 1 back end 1/2", total=4, images=images)
    for step, _ in enumerate(meter.timed(range(2))):
        meter.losses.append(step + 0.5)
        meter.tick()
    meter.recent.clear()
    meter.recent.extend([0.0, 0.25, 0.5])  # seconds: whatever the machine, 16 images/s
    return meter


def test_times_as_people_say_them():
    assert [clock(s) for s in (4.24, 59, 60, 3599, 7384)] == ["4.2 s", "59 s", "1:00 min", "59:59 min", "2:03:04 h"]


def test_as_many_parts_as_fit():
    parts = ["loss 1.0", "2 images/s", "3 s left"]
    assert [fitting(parts, room) for room in (7, 8, 19, 20, 99)] == [
        "",
        "loss 1.0",
        "loss 1.0",
        "loss 1.0, 2 images/s",
        "loss 1.0, 2 images/s, 3 s left",
    ]


def test_a_meter_counts_steps_and_the_wait_for_data(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def slow():
        for item in "ab":
            now[0] += 3
            yield item

    meter = Meter("stage", total=4, images=10, began=now[0])
    for _ in meter.timed(slow()):
        now[0] += 1
        meter.losses.append(2.0)
        meter.tick()
    assert (meter.done, meter.waited, meter.share) == (2, 6.0, 0.5)
    told = ", ".join(meter.parts())
    assert told.startswith("loss 2.000, 2.5 images/s, 8.0 s left") and told.endswith("step 2/4, waited 75% for data")
    spent = meter.spent()
    assert (spent.seconds, spent.steps, spent.images, spent.waited, spent.loss) == (8.0, 2, 20, 6.0, 2.0)
    assert spent.line().startswith("stage: 2 steps in 8.0 s, loss 2.000, 2.5 images/s, ")
    assert spent.line().endswith(" GiB, waited 75% for data")
    assert spent.line(width=48) == "stage: 2 steps in 8.0 s, loss 2.000, 2.5 images/s"[:48].rpartition(",")[0]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_terminal_is_never_written_over_its_edge(width, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (width, 24))
    line = ProgressLine(half_way(), quiet=False)
    line.show()
    line.close()
    drawn = [part for part in terminal.written.split("\r") if "50%" in part]
    assert drawn and all(len(part) <= width for part in drawn)
    assert re.search(r"% \|[^|]{3,}\| ", drawn[-1]) and not drawn[-1].rstrip().endswith(","), "nothing is cut in two"
    all_four = ["loss 1.000", "16 images/s", "0.5 s left", "GiB"]
    wanted = {40: [], 80: all_four, 120: [*all_four, "step 2/4", "waited"]}[width]
    assert all(word in drawn[-1] for word in ["cycle 1 back end 1/2", *wanted])


def test_a_log_file_gets_a_plain_line_every_so_often(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    meter = half_way()
    line = ProgressLine(meter, quiet=False)
    for _ in range(1000):
        now[0] += 0.1
        line.show()
    line.close()
    printed = capsys.readouterr().err
    assert "\r" not in printed and len(printed.splitlines()) == 3, "one each 30 s of 100 s"
    assert all(part.startswith("cycle 1 back end 1/2: 50%, loss 1.000, ") for part in printed.splitlines())


def test_a_quiet_line_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    ProgressLine(half_way(), quiet=True).show()
    assert capsys.readouterr() == ("", "")


def test_memory_is_that_of_this_process():
    now, most = progress.memory(), progress.most_memory()
    assert now is not None and most is not None and 2**20 < now <= 1.05 * most


def test_a_part_without_steps_tells_its_time_alone():
    assert Spent("cycle 1 score", 61.0).line() == "cycle 1 score: 1:01 min"
    assert (
        Spent("s", 10.0, 5, 100, memory=2**30, gpu_memory=2**31).line() == "s: 10 s, 10 images/s, 1.0 GiB, GPU 2.0 GiB"
    )


def test_waiting_is_the_time_until_an_item_is_there_not_that_of_its_use(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("hovernet_cyclic.training.progress.time.monotonic", lambda: clock[0])

    def slow():
        for number in range(3):
            clock[0] += 2
            yield number

    meter = Meter("a stage", total=3, images=1)
    for _ in meter.timed(slow()):
        clock[0] += 10
    assert meter.waited == 6
