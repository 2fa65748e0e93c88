"""Time training in one and in several processes: images/s, and what the time goes into.

    python -m benchmarks.scaling [--processes 1 2] [--workers 0 1] [--net small] [--steps 30] [--out scaling.json]

Both ends learn from the demo's drawing, by the recipe `demo` with another network where one is asked for. The batch is
the same for any number of processes. Of each stage the first steps are not counted. `waiting`: share of the time in
which a process waits for its next batch. `all-reduce`: share in which it exchanges gradients, sums of losses or
statistics of BatchNorm, waiting for the others included, in some more steps under torch's profiler; what runs beside
the backward pass counts too. `peak`: multiply-adds of a step, forward and backward, against this machine's own product
of large matrices (no figure on a GPU). With --gpu=0,1 it takes GPUs, as many as there are processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import config
from benchmarks.demo_losses import stained_tiles
from benchmarks.json_report import write_report
from benchmarks.speed import matrix_rate
from dataloader.classifier_loader import PatchSampler
from dataloader.datasets import open_source
from dataloader.datasets.demo import DemoSizes, write_demo_data
from dataloader.train_loader import TileSampler
from hovernet_cyclic.command_line import is_one_of_several
from hovernet_cyclic.core.settings import NetSettings, TrainRecipe
from hovernet_cyclic.training.back_end import back_end_loss, train_back_end
from hovernet_cyclic.training.devices import check_share, for_training, seed_everything, with_workers
from hovernet_cyclic.training.front_end import front_end_loss, train_front_end
from hovernet_cyclic.training.networks import Networks
from hovernet_cyclic.training.processes import run_as_rank, run_processes
from hovernet_cyclic.training.run_dir import Stage
from models.devices import Device, choose_devices
from models.hovernet.net_desc import input_shape
from models.ranks import ALONE, Ranks

SIZES = DemoSizes(positives=96, negatives=96, tiles=6, valid=1, test=1)
WARM, PROFILED = 4, 4  # steps that are not counted, and those under the profiler
OUTPUTS = {"small": (128, 128), "fast": (164, 164), "original": (80, 80)}


class Clock:
    """A log that notes when each step ended, and how long its batch was waited for."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.waits: list[float] = []

    def steps(self, items: Iterator[Any], total: int, name: str, images: int) -> Iterator[Any]:
        begin = time.perf_counter()
        for item in items:
            self.waits.append(time.perf_counter() - begin)
            yield item
            begin = time.perf_counter()

    def loss(self, stage: str, step: int, parts: dict[str, float]) -> None:
        self.ends.append(time.perf_counter())

    def waited(self, *_: object) -> None:
        pass

    def found(self, batch_size: int) -> dict[str, float]:
        seconds = self.ends[-1] - self.ends[WARM - 1]
        steps = len(self.ends) - WARM
        return {
            "images_per_s": batch_size * steps / seconds,
            "seconds_per_step": seconds / steps,
            "waiting": sum(self.waits[WARM:]) / seconds,
        }


def recipe_of(net: str) -> TrainRecipe:
    whole = config.demo()
    back_end = dataclasses.replace(whole.back_end, patch_shape=OUTPUTS[net])
    return dataclasses.replace(whole, net=NetSettings(mode=net), back_end=back_end)


def time_ends(recipe: TrainRecipe, data_dir: str, steps: int, device: Device, ranks: Ranks) -> dict[str, Any]:
    """{'front end', 'back end': what `Clock` found, and shares} as this one of `ranks` saw it."""
    check_share(recipe, ranks)
    seed_everything(recipe.seed)
    source, networks = open_source(recipe.data, data_dir).train, Networks.fresh(recipe, device)
    front, back = recipe.front_end, recipe.back_end
    patches = PatchSampler(source, range(len(source.patch_labels)), front.batch_size, recipe.seed)
    negatives = [i for i, label in enumerate(source.patch_labels[:, 0]) if label == 0]
    shapes = input_shape(recipe.net.mode, back.patch_shape), back.patch_shape
    tiles = TileSampler(stained_tiles(recipe, source), (source, negatives), shapes, back, recipe.seed)
    classifier, student, teacher = networks.classifier, networks.student, networks.teacher
    ends: dict[str, tuple[Callable[..., None], int, Callable[[], dict[str, torch.Tensor]]]] = {
        "front end": (
            lambda some, stage: train_front_end(classifier, patches, some, front, stage),
            front.batch_size,
            lambda: front_end_loss(classifier, patches.batch(0), front, device),
        ),
        "back end": (
            lambda some, stage: train_back_end(student, teacher, tiles, some, back, stage),
            back.batch_size,
            lambda: back_end_loss(student, teacher, tiles.batch(0), back, device),
        ),
    }
    found = {}
    for name, (train, batch_size, loss) in ends.items():
        gflop = gflop_of(loss)
        clock = Clock()
        train(range(WARM + steps), Stage(name, device, clock, ranks))
        found[name] = clock.found(batch_size) | {"all_reduce": exchange_share(train, device, ranks), "gflop": gflop}
    return found


def gflop_of(loss: Callable[[], dict[str, torch.Tensor]]) -> float:
    """GFLOP of a step of the whole batch, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        torch.stack(list(loss().values())).sum().backward()
    return counter.get_total_flops() / 1e9


def exchange_share(train: Callable[..., None], device: Device, ranks: Ranks) -> float:
    """The share of some steps' time that all-reduces take, by torch's profiler."""
    if ranks.count == 1:
        return 0.0
    on_gpu = device.torch_device.type == "cuda"
    clock = Clock()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        begin = time.perf_counter()
        train(range(PROFILED), Stage("", device, clock, dataclasses.replace(ranks, workers=0)))
        seconds = time.perf_counter() - begin
    events = [event for event in profiler.key_averages() if event.key.startswith(("gloo:", "ncclDevKernel"))]
    microseconds = sum(event.device_time_total if on_gpu else event.cpu_time_total for event in events)
    return microseconds / 1e6 / seconds


def as_rank(given: argparse.Namespace) -> int:
    """One of the processes of a row; the first writes what it found."""

    def work(device: Device, ranks: Ranks) -> int:
        device = for_training(device)
        found = time_ends(recipe_of(given.net), given.data_dir, given.steps, device, ranks)
        everyone = ranks.gather([found])
        if ranks.leads:
            result = {"dtype": str(device.dtype).removeprefix("torch."), "ends": everyone}
            given.out.write_text(json.dumps(result), encoding="utf-8")
        return 0

    workers = given.workers[0]
    if is_one_of_several():
        return run_as_rank(work, given.gpu, workers, str(given.out.parent))
    device = choose_devices(given.gpu)[0]
    return work(device, with_workers(ALONE, device, workers))


def measure(given: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_demo_data(f"{folder}/data", sizes=SIZES)
        for workers in given.workers:
            for processes in given.processes:
                out = Path(folder) / "found.json"
                command = [sys.executable, "-m", "benchmarks.scaling", "--as_rank", f"--data_dir={folder}/data"]
                command += [f"--net={given.net}", f"--steps={given.steps}", f"--workers={workers}", f"--out={out}"]
                command += [f"--gpu={given.gpu}"] if given.gpu else []
                run = run_processes if processes > 1 else lambda words, _: subprocess.run(words, check=False).returncode
                if run(command, processes):
                    raise SystemExit(f"{processes} processes with {workers} workers did not come to their end.")
                rows += rows_of(json.loads(out.read_text(encoding="utf-8")), processes, workers)
                for row in rows[-2:]:
                    say(line(row, rows))
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return {"machine": machine, "net": given.net, "steps": given.steps, "rows": rows}


def rows_of(result: dict[str, Any], processes: int, workers: int) -> list[dict[str, Any]]:
    """A row for each end: the slowest of the processes, with the mean of their shares."""
    dtype, everyone = result["dtype"], result["ends"]
    peak = matrix_rate(getattr(torch, dtype)) if not torch.cuda.is_available() else float("nan")
    rows = []
    for end in everyone[0]:
        found = [one[end] for one in everyone]
        row = {"end": end, "processes": processes, "workers": workers, "dtype": dtype}
        row |= {"images_per_s": min(one["images_per_s"] for one in found)}
        row |= {name: sum(one[name] for one in found) / len(found) for name in ("waiting", "all_reduce")}
        seconds = max(one["seconds_per_step"] for one in found)
        rows.append({**row, "seconds_per_step": seconds, "peak": found[0]["gflop"] / seconds / peak})
    return rows


HEADER = (
    "| end | processes | workers each | images/s | times one process | waiting | all-reduce | peak |\n"
    + "|---" * 8
    + "|"
)


def line(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A row of the table; compared with one process of as many workers, where there was one."""
    alone = [one for one in rows if one["processes"] == 1 and all(one[k] == row[k] for k in ("end", "workers"))]
    times = f"{row['images_per_s'] / alone[0]['images_per_s']:.2f}" if alone else ""
    cells = [row["end"], row["processes"], row["workers"], f"{row['images_per_s']:.1f}", times]
    cells += [f"{row['waiting']:.1%}", f"{row['all_reduce']:.1%}", f"{row['peak']:.1%}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1], help="of each process, that make its batches")
    parser.add_argument("--net", choices=sorted(OUTPUTS), default="small")
    parser.add_argument("--steps", type=int, default=30, help="that are counted")
    parser.add_argument("--gpu", default=None, help="as of run_train.py")
    parser.add_argument("--out", type=Path, default=Path("scaling.json"))
    parser.add_argument("--as_rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--data_dir", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_rank:
        return as_rank(given)
    print(HEADER)
    report = measure(given, partial(print, flush=True))
    write_report(given.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
