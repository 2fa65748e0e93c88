"""Accuracy on real tissue: each cycle of an image-level run beside Otsu's threshold with a watershed.

Usage:
  accuracy.py [--data_dir=<dir>] [--log_dir=<dir>] [--recipe=<name>] [--gpu=<ids>] [--seed=<n>] [--reuse] [--out=<file>]
  accuracy.py (-h | --help)

Options:
  --data_dir=<dir>  Folder that the recipe's reader opens. [default: ../shared/data]
  --log_dir=<dir>   Folder of the run. [default: logs/accuracy]
  --recipe=<name>   An image-level recipe of config.py. [default: benchmark]
  --gpu=<ids>       As for run_train.py. [default: cpu]
  --seed=<n>        Seed of the run. [default: 10]
  --reuse           Score the run that --log_dir holds, and do not train.
  --out=<file>      Also write the table as JSON.

Run it from the repository root as `python -m benchmarks.accuracy`. Training happens in a process of its own that opens
no label file; labels are read here, afterwards, for the table alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from docopt import docopt

from benchmarks.baselines import otsu_watershed
from dataloader.datasets import open_source
from hovernet_cyclic.core.comparison import SCORE_NAMES, score_pairs
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import AnnotatedSource, Annotation
from hovernet_cyclic.training.evaluate import score_source, score_table
from hovernet_cyclic.training.run_dir import RunDir
from infer.base import NetworkSegmenter
from models.checkpoint import load_network
from models.devices import choose_device


def main() -> int:
    arguments = docopt(__doc__ or "")
    run = RunDir(arguments["--log_dir"])
    began = time.monotonic()
    if not arguments["--reuse"]:
        train(arguments)
    minutes = (time.monotonic() - began) / 60
    described = run.read_json("recipe.json", {})
    recipe = TrainRecipe.from_dict(described["recipe"])
    splits = open_source(recipe.data, arguments["--data_dir"])
    sources = {**({"valid": splits.valid} if splits.valid else {}), **splits.test}
    rows = {name: score_arms(source, run, recipe, arguments["--gpu"]) for name, source in sources.items()}
    cycles = run.read_json("cycles.json", [])
    seconds = sum(row["seconds"] for row in cycles)
    print(score_table(rows))
    for row in cycles:
        print(f"cycle {row['cycle']}: {row['reason']} ({row['seconds'] / 60:.1f} min)")
    print(f"command: {' '.join(sys.argv)}\nseed: {recipe.seed}\nminutes of training: {seconds / 60:.1f}")
    print("versions:", ", ".join(f"{name} {value}" for name, value in described["versions"].items()))
    if arguments["--out"]:
        report = {"rows": rows, "cycles": cycles, "minutes": minutes, **described}
        Path(arguments["--out"]).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def train(arguments: dict[str, Any]) -> None:
    options = [f"{name}={arguments[name]}" for name in ("--recipe", "--data_dir", "--log_dir", "--gpu", "--seed")]
    subprocess.run([sys.executable, "run_train.py", *options, "--no_scores"], check=True)


def score_arms(source: AnnotatedSource, run: RunDir, recipe: TrainRecipe, gpu: str) -> dict[str, Any]:
    """The rows of one split: {arm: {'mean': ..., 'tiles': ...}}."""
    device = choose_device(gpu)
    arms = {"Otsu + watershed": score_baseline(source)}
    for cycle, path in run.cycle_nets():
        loaded = load_network(path)
        segmenter = NetworkSegmenter(loaded.net, loaded.mode, device.torch_device, dtype=device.dtype)
        arms[f"image-level, cycle {cycle}"] = score_source(segmenter, source, recipe.net.post_proc)
    return arms


def score_baseline(source: AnnotatedSource) -> dict[str, Any]:
    pairs = []
    for i in range(len(source.tile_ids)):
        tile = source.read_tile(i)
        pairs.append((source.annotation(i), Annotation(tile.tile_id, otsu_watershed(tile.image))))
    mean = score_pairs(pairs).values.mean(axis=0)
    return {"mean": dict(zip(SCORE_NAMES, map(float, mean), strict=True))}


if __name__ == "__main__":
    sys.exit(main())
