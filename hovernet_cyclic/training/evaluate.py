"""Scores of a finished run. It calls `annotation()` to report, and never to choose.

It runs in a process of its own, after the last step of training, so that the process that trains an image-level
recipe opens no label file at all.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from typing import Any

import numpy as np

from dataloader.datasets import open_source
from dataloader.images import write_png
from hovernet_cyclic.core.comparison import SCORE_NAMES, score_pairs
from hovernet_cyclic.core.errors import HoverNetCyclicError
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import AnnotatedSource, Annotation, Segmenter
from hovernet_cyclic.training.gallery import boxes, compared, sheet
from hovernet_cyclic.training.run_dir import RunDir
from hovernet_cyclic.training.run_facts import RunFacts, ranked
from infer.base import NetworkSegmenter
from models.checkpoint import load_network
from models.hovernet.post_proc import segment

Pair = tuple[Annotation, Annotation]
SHOWN = ("dice", "aji", "pq")


def score_source(segmenter: Segmenter, source: AnnotatedSource, recipe: TrainRecipe) -> dict[str, Any]:
    """Mean scores over the tiles of `source`, and those of each tile: {'mean': {name: float}, 'tiles': {id: {...}}}."""
    return scores_of(segmented(segmenter, source, recipe))


def segmented(segmenter: Segmenter, source: AnnotatedSource, recipe: TrainRecipe) -> list[Pair]:
    """(drawn, found) of each tile of `source`, in its order."""
    pairs = []
    for i in range(len(source.tile_ids)):
        tile = source.read_tile(i)
        inst_map = segment(segmenter.raw_maps(tile.image), recipe.net.post_proc, recipe.smallest_area)
        pairs.append((source.annotation(i), Annotation(tile.tile_id, inst_map)))
    return pairs


def scores_of(pairs: list[Pair]) -> dict[str, Any]:
    """The scores of (drawn, found), see `score_source`."""
    values = score_pairs(pairs).values
    names = [found.tile_id for _, found in pairs]
    tiles = {
        name: dict(zip(SCORE_NAMES, map(float, row), strict=True)) for name, row in zip(names, values, strict=True)
    }
    mean = dict(zip(SCORE_NAMES, map(float, np.mean(values, axis=0)), strict=True))
    return {"mean": mean, "tiles": tiles}


def score_run(log_dir: str, data_dir: str, device: str) -> None:
    """Score the network of every cycle on the annotated splits, write scores.json and print a table.

    Of the product's cycle, pictures of the best, the median and the worst tile of each split are left in scored/.
    """
    run = RunDir(log_dir)
    rows: dict[str, Any] = {}
    shown: list[dict[str, Any]] = []
    product = RunFacts.read(run).best.get("cycle")
    for cycle, path in run.cycle_nets():
        loaded = load_network(path)
        assert loaded.recipe is not None, "cycle_*/net.tar is written with its recipe"
        recipe = TrainRecipe.from_dict(loaded.recipe)
        segmenter = NetworkSegmenter(loaded.net, loaded.mode, device)
        splits = open_source(recipe.data, data_dir, with_patches=False)
        sources = {**({"valid": splits.valid} if splits.valid else {}), **splits.test}
        for name, source in sources.items():
            pairs = segmented(segmenter, source, recipe)
            rows.setdefault(name, {})[f"cycle {cycle}"] = scores = scores_of(pairs)
            if cycle == product:
                shown += show_tiles(run, source, pairs, ranked(name, scores["tiles"]))
    if rows:
        run.write_json("scored/index.json", shown)
        run.write_json("scores.json", rows)
        print(score_table(rows))


def show_tiles(
    run: RunDir, source: AnnotatedSource, pairs: list[Pair], chosen: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write a sheet of image, drawn and found nuclei of each tile that `ranked` chose. Returns the index's rows."""
    places = {found.tile_id: i for i, (_, found) in enumerate(pairs)}
    rows = []
    for row in chosen:
        place = places[row["tile_id"]]
        drawn, found = pairs[place]
        pictures = compared(source.read_tile(place).image, drawn.inst_map, found.inst_map)
        name = re.sub(r"\W", "_", f"{row['split']}_{row['which']}") + ".png"
        write_png(run.path / "scored" / name, sheet([pictures]))
        rows.append({**row, "file": name, "boxes": boxes([pictures])[0]})
    return rows


def score_table(rows: dict[str, Any]) -> str:
    """{split: {arm: {'mean': {name: float}}}} -> lines of a table."""
    lines = [f"{'split':<14} {'arm':<28} " + " ".join(f"{name:>6}" for name in SHOWN)]
    for split, arms in rows.items():
        for arm, scores in arms.items():
            numbers = " ".join(f"{scores['mean'][name]:6.3f}" for name in SHOWN)
            lines.append(f"{split:<14} {arm:<28} {numbers}")
    return "\n".join(lines)


def score_in_own_process(run: RunDir, data_dir: str, device: str) -> bool:
    """Run `score_run` apart from the process that trained. Returns whether it went well."""
    process = multiprocessing.get_context("spawn").Process(target=_score_apart, args=(str(run.path), data_dir, device))
    process.start()
    process.join()
    return process.exitcode == 0


def _score_apart(log_dir: str, data_dir: str, device: str) -> None:
    try:
        score_run(log_dir, data_dir, device)
    except HoverNetCyclicError as error:
        sys.exit(f"The run is trained but not scored: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # the parent is interrupted too, and says so
