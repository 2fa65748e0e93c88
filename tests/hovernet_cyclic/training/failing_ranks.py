"""What the processes of test_processes.py do: python failing_ranks.py FATE LOG_DIR. Rank 1 meets it, rank 0 waits."""

import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from hovernet_cyclic.command_line import leads
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.training.processes import run_as_rank
from hovernet_cyclic.training.signals import listening, stop_request

FATE, LOG_DIR = sys.argv[1:]


def meet(rank):
    if FATE == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if FATE == "bug" and rank == 1:
        raise ValueError("a bug\nof two lines")
    if FATE == "memory" and rank == 1:
        raise MemoryError
    if FATE == "bad files" or (FATE == "bad file" and rank == 1):
        raise DatasetError(f"image_{rank}.png is an empty file: copy or export it again.")
    if FATE == "code" and rank == 1:
        os._exit(7)
    if FATE == "asleep":
        (Path(LOG_DIR) / f"asleep_{rank}_{os.getpid()}").touch()
        time.sleep(300)


def be_stopped(ranks):
    """The signal comes while rank 0 is at work, and the other waits for it at the end."""
    (Path(LOG_DIR) / f"asleep_{ranks.rank}_{os.getpid()}").touch()
    if ranks.leads:
        time.sleep(300)
    return 0


def save(ranks):
    """The signal is heard a while later, as at the end of a long step."""
    with (stop := stop_request()).deferred():
        (Path(LOG_DIR) / f"asleep_{ranks.rank}_{os.getpid()}").touch()
        while not stop.is_asked:
            time.sleep(0.01)
        time.sleep(2)
        (Path(LOG_DIR) / f"saved_{ranks.rank}").touch()
        stop.heed()
    return 0


DEEDS = {"stopped": be_stopped, "saving": save}


def work(device, ranks):
    if FATE in DEEDS:
        return DEEDS[FATE](ranks)
    ranks.wait()
    if FATE != "asleep" and ranks.leads:
        print(f"{device.torch_device.type}: all are here")
    if FATE != "well":
        meet(ranks.rank)
        for _ in range(3000):  # as a training loop that meets the others at every step
            ranks.wait()
            time.sleep(0.01)
    return 0


if __name__ == "__main__":
    with listening() if FATE in DEEDS else nullcontext():
        sys.exit(run_as_rank(work, "cpu", None, LOG_DIR, lambda: leads() and print("go on")))
