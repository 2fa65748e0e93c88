"""Scores of a finished run. It calls `annotation()` to report, and never to choose.

It runs in a process of its own, after the last step of training, so that the process that trains an image-level
recipe opens no label file at all.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from typing import Any

import numpy as np

from dataloader.datasets import open_source
from hovernet_cyclic.core.comparison import SCORE_NAMES, score_pairs
from hovernet_cyclic.core.errors import HoverNetCyclicError
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import AnnotatedSource, Annotation, Segmenter
from hovernet_cyclic.training.run_dir import RunDir
from hovernet_cyclic.training.signals import stop_request
from infer.base import NetworkSegmenter
from models.checkpoint import load_network
from models.hovernet.post_proc import segment

SHOWN = ("dice", "aji", "pq")


def score_source(segmenter: Segmenter, source: AnnotatedSource, recipe: TrainRecipe) -> dict[str, Any]:
    """Mean scores over the tiles of `source`, and those of each tile: {'mean': {name: float}, 'tiles': {id: {...}}}."""
    pairs = []
    for i in range(len(source.tile_ids)):
        tile = source.read_tile(i)
        inst_map = segment(segmenter.raw_maps(tile.image), recipe.net.post_proc, recipe.smallest_area)
        pairs.append((source.annotation(i), Annotation(tile.tile_id, inst_map)))
    values = score_pairs(pairs).values
    names = list(source.tile_ids)
    tiles = {
        name: dict(zip(SCORE_NAMES, map(float, row), strict=True)) for name, row in zip(names, values, strict=True)
    }
    mean = dict(zip(SCORE_NAMES, map(float, np.mean(values, axis=0)), strict=True))
    return {"mean": mean, "tiles": tiles}


def score_run(log_dir: str, data_dir: str, device: str) -> None:
    """Score the network of every cycle on the annotated splits, write scores.json and print a table."""
    run = RunDir(log_dir)
    rows: dict[str, Any] = {}
    for cycle, path in run.cycle_nets():
        loaded = load_network(path)
        assert loaded.recipe is not None, "cycle_*/net.tar is written with its recipe"
        recipe = TrainRecipe.from_dict(loaded.recipe)
        segmenter = NetworkSegmenter(loaded.net, loaded.mode, device)
        splits = open_source(recipe.data, data_dir, with_patches=False)
        sources = {**({"valid": splits.valid} if splits.valid else {}), **splits.test}
        for name, source in sources.items():
            scores = score_source(segmenter, source, recipe)
            rows.setdefault(name, {})[f"cycle {cycle}"] = scores
    if rows:
        run.write_json("scores.json", rows)
        print(score_table(rows))


def score_table(rows: dict[str, Any]) -> str:
    """{split: {arm: {'mean': {name: float}}}} -> lines of a table."""
    lines = [f"{'split':<14} {'arm':<28} " + " ".join(f"{name:>6}" for name in SHOWN)]
    for split, arms in rows.items():
        for arm, scores in arms.items():
            numbers = " ".join(f"{scores['mean'][name]:6.3f}" for name in SHOWN)
            lines.append(f"{split:<14} {arm:<28} {numbers}")
    return "\n".join(lines)


def score_in_own_process(run: RunDir, data_dir: str, device: str) -> bool:
    """Run `score_run` apart from the process that trained. Returns whether it went well.

    Raises what this process is asked to do meanwhile (see signals.py), and leaves none behind.
    """
    process = multiprocessing.get_context("spawn").Process(target=_score_apart, args=(str(run.path), data_dir, device))
    process.start()
    try:
        process.join()
        if process.exitcode == -signal.SIGTERM:  # a cluster ends the processes of a job one after the other
            stop_request().heed_within(2.0)
    finally:
        process.terminate()
        process.join()
    return process.exitcode == 0


def _score_apart(log_dir: str, data_dir: str, device: str) -> None:
    try:
        score_run(log_dir, data_dir, device)
    except HoverNetCyclicError as error:
        sys.exit(f"The run is trained but not scored: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # the parent is interrupted too, and says so
