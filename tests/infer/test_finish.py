import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import Box, RawMaps
from infer.finish import Finisher, Outcome, TileJob, failure_sentence, finish_all
from infer.type_info import default_type_info
from infer.writers import OutputFolder


def job(name):
    maps = RawMaps(np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.float32))
    return TileJob(Path(name), np.zeros((4, 4, 3), np.uint8), maps, Box(0, 0, 4, 4))


class Fake:
    """Finishes by name; an object of a class here can be sent to a new process."""

    def __call__(self, tile_job):
        name = tile_job.key.stem
        if name == "kill":
            os._exit(9)
        if name == "bad":
            raise DatasetError("bad.png is bad: mend it.")
        if name == "odd":
            raise KeyError("seven")
        return int(name)


@pytest.fixture(scope="module")
def importable(tmp_path_factory):
    """A module that a new process can import: this one's name is known to pytest alone."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "fake_finish.py").write_text(
        "import os\nfrom hovernet_cyclic.core.errors import DatasetError\n"
        "class Fake:\n"
        "    def __call__(self, tile_job):\n"
        "        name = tile_job.key.stem\n"
        "        if name == 'kill':\n            os._exit(9)\n"
        "        tried = tile_job.key.with_suffix('.tried')\n"
        "        if name == '77' and not tried.exists():\n            tried.touch()\n            os._exit(9)\n"
        "        if name == 'bad':\n            raise DatasetError('bad.png is bad: mend it.')\n"
        "        if name == 'odd':\n            raise KeyError('seven')\n"
        "        return int(name)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import fake_finish

        yield fake_finish.Fake()


NAMES = ["1.png", "bad.png", "2.png", "odd.png", "3.png"]


def check(outcomes):
    found = {outcome.key.name: outcome for outcome in outcomes}
    assert len(found) == len(outcomes)
    assert {name: found[name].result for name in ("1.png", "2.png", "3.png")} == {"1.png": 1, "2.png": 2, "3.png": 3}
    assert found["bad.png"].failure == "bad.png is bad: mend it."
    assert found["odd.png"].failure.startswith("odd.png: it failed in an unexpected way (KeyError: 'seven')")
    return found


def test_one_bad_tile_does_not_end_the_others():
    check(list(finish_all(map(job, NAMES), Fake(), 0)))


def test_nor_in_processes_even_if_one_is_killed(importable):
    outcomes = list(finish_all(map(job, ["kill.png", *NAMES]), importable, 2))
    found = check(outcomes)
    assert "was killed" in found["kill.png"].failure and found["kill.png"].failure.startswith("kill.png")


def test_a_tile_whose_process_dies_once_is_done_again(importable, tmp_path):
    names = [str(tmp_path / name) for name in ("1.png", "77.png", "2.png")]
    outcomes = list(finish_all(map(job, names), importable, 2))
    assert (tmp_path / "77.tried").exists()
    assert sorted(outcome.result for outcome in outcomes) == [1, 2, 77]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_failed_before_is_passed_on_and_jobs_are_asked_for_late(importable, workers):
    asked = []

    def jobs():
        yield Outcome(Path("unread.png"), failure="unread.png is torn.")
        for i in range(12):
            asked.append(i)
            yield job(f"{i}.png")

    outcomes = finish_all(jobs(), importable if workers else Fake(), workers)
    assert next(outcomes).failure == "unread.png is torn."
    assert asked == []
    for finished in range(12):
        assert len(asked) - finished <= max(2 * workers, 1)
        next(outcomes)
    assert len(asked) == 12 and next(outcomes, None) is None


def test_sentences_name_the_file_and_the_cure():
    path = Path("dir/a.png")
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
    for error in (MemoryError(), out_of_memory):
        assert failure_sentence(path, error) == (
            "dir/a.png: memory is too small for it: give a smaller --batch_size, or cut the image into smaller ones."
        )
    sentence = failure_sentence(path, OSError(28, "No space left on device"))
    assert sentence.startswith("dir/a.png") and "No space left on device" in sentence


def test_a_recipe_says_how_small_a_nucleus_may_be(tmp_path):
    prob = np.zeros((40, 40), np.float32)
    prob[2:8, 2:8] = prob[20:32, 20:32] = 1  # 36 and 144 px
    image = np.zeros((40, 40, 3), np.uint8)
    job = TileJob(Path("a.png"), image, RawMaps(prob, np.zeros((40, 40, 2), np.float32)), Box(0, 0, 40, 40))
    outputs = OutputFolder(tmp_path, default_type_info(None))
    assert [Finisher(outputs, "local", 0.25, smallest)(job) for smallest in (10, 80)] == [2, 1]


ENDLESS = """
import os, time
from pathlib import Path
import numpy as np
from hovernet_cyclic.core.types import Box, RawMaps
from infer.finish import TileJob, finish_all
def jobs():
    maps = RawMaps(np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.float32))
    while True:
        yield TileJob(Path("a"), np.zeros((4, 4, 3), np.uint8), maps, Box(0, 0, 4, 4))
if __name__ == "__main__":
    for outcome in finish_all(jobs(), repr, 1):
        print(*Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split(), flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux' /proc")
def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    root = Path(__file__).parents[2]
    command = [sys.executable, str(tmp_path / "endless.py")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    children = parent.stdout.readline().split()
    assert children
    parent.kill()
    parent.wait()
    for _ in range(600):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            return
        time.sleep(0.1)
    pytest.fail("a process outlived its parent")
