"""run_train.py as a cluster stops it: a process that imports everything once, and forks a child for each time.

stopped_runs.py DATA_DIR LOG_DIR RECIPE.json: SIGTERM reaches all processes of the child at once, the first child while
processes make pseudo masks, the second while a process of its own scores, with --resume; the third is left alone.
Prints as JSON the exit code and the output of each.
"""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

import config
import run_train
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.training import cyclic
from models import devices


def in_pool():
    """SIGTERM comes while processes cut tiles into candidates."""
    cyclic.TILES_PER_PROCESS = 1
    honest = cyclic.in_processes

    def spied(jobs, most, stop):
        for answer in honest(jobs, most, stop):
            os.killpg(0, signal.SIGTERM)
            yield answer

    cyclic.in_processes = spied


def in_scoring():
    """SIGTERM comes when the process that scores has been started."""
    spawn = multiprocessing.get_context("spawn")
    honest = spawn.Process.start

    def started(process):
        honest(process)
        os.killpg(0, signal.SIGTERM)

    spawn.Process.start = started


def child(prepare, words, out):
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    prepare()
    sys.exit(run_train.main(words))


def main(data_dir, log_dir, recipe):
    torch.set_num_threads(1)
    devices._cpu_has_bfloat16 = lambda: False  # in float32, as the runs that this one is compared with
    recipe = TrainRecipe.from_dict(json.loads(Path(recipe).read_text()))
    config.RECIPES["stopped"] = lambda: recipe
    words = ["--recipe=stopped", f"--data_dir={data_dir}", f"--log_dir={log_dir}", "--gpu=cpu"]
    answers = []
    for prepare, more in ((in_pool, []), (in_scoring, ["--resume"]), (lambda: None, ["--resume"])):
        out = Path(f"{log_dir}.{len(answers)}.txt")
        born = os.fork()
        if born == 0:
            child(prepare, [*words, *more], out)
        _, status = os.waitpid(born, 0)
        answers.append([os.waitstatus_to_exitcode(status), out.read_text()])
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
