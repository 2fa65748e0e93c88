"""Scores of a finished run. It calls `annotation()` to report, and never to choose.

It runs in a process of its own, after the last step of training, so that the process that trains an image-level
recipe opens no label file at all.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import sys
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
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
from hovernet_cyclic.training.signals import stop_request
from infer.base import NetworkSegmenter
from models.checkpoint import load_network
from models.hovernet.post_proc import segment
from models.ranks import ALONE, Ranks, deal_back

Shares = dict[tuple[str, str], list[tuple[str, list[float]]]]  # (split, arm) -> tiles: see _score_tiles
SHOWN = ("dice", "aji", "pq")


def score_source(segmenter: Segmenter, source: AnnotatedSource, recipe: TrainRecipe) -> dict[str, Any]:
    """Mean scores over the tiles of `source`, and those of each tile: {'mean': {name: float}, 'tiles': {id: {...}}}."""
    return _with_mean(_score_tiles(segmenter, source, recipe, ALONE))


def _score_tiles(
    segmenter: Segmenter, source: AnnotatedSource, recipe: TrainRecipe, ranks: Ranks
) -> list[tuple[str, list[float]]]:
    """(tile_id, scores in the order of SCORE_NAMES) of this process's own tiles."""
    names, pairs = [], []
    for i in ranks.own(range(len(source.tile_ids))):
        tile = source.read_tile(i)
        inst_map = segment(segmenter.raw_maps(tile.image), recipe.net.post_proc, recipe.smallest_area)
        pairs.append((source.annotation(i), Annotation(tile.tile_id, inst_map)))
        names.append(source.tile_ids[i])
    return list(zip(names, score_pairs(pairs).values.tolist(), strict=True))


def _with_mean(tiles: list[tuple[str, list[float]]]) -> dict[str, Any]:
    mean = np.mean([values for _, values in tiles], axis=0)
    return {
        "mean": dict(zip(SCORE_NAMES, map(float, mean), strict=True)),
        "tiles": {name: dict(zip(SCORE_NAMES, values, strict=True)) for name, values in tiles},
    }


def score_run(log_dir: str, data_dir: str, device: str) -> None:
    """Score the network of every cycle on the annotated splits, write scores.json and print a table."""
    _report(RunDir(log_dir), [_score_nets(log_dir, data_dir, device, ALONE)])


def _score_nets(log_dir: str, data_dir: str, device: str, ranks: Ranks) -> Shares:
    """Own tiles of every split, by the network of every cycle."""
    shares: Shares = {}
    for cycle, path in RunDir(log_dir).cycle_nets():
        loaded = load_network(path)
        assert loaded.recipe is not None, "cycle_*/net.tar is written with its recipe"
        recipe = TrainRecipe.from_dict(loaded.recipe)
        segmenter = NetworkSegmenter(loaded.net, loaded.mode, device)
        for name, source in scored_sources(recipe, data_dir).items():
            shares[name, f"cycle {cycle}"] = _score_tiles(segmenter, source, recipe, ranks)
    return shares


def _report(run: RunDir, shares: list[Shares]) -> None:
    """Write scores.json and print a table of what all processes found, in the order of their ranks."""
    rows: dict[str, Any] = {}
    for split, arm in shares[0]:
        rows.setdefault(split, {})[arm] = _with_mean(deal_back([share[split, arm] for share in shares]))
    if rows:
        run.write_json("scores.json", rows)
        print(score_table(rows))


def show_scored(log_dir: str, data_dir: str, device: str) -> None:
    """Of the product's cycle, leave pictures of the best, the median and the worst tile of each split in scored/."""
    run = RunDir(log_dir)
    facts = RunFacts.read(run)
    path = run.cycle(facts.best["cycle"]) / "net.tar" if facts.best else run.net
    loaded = load_network(path)
    recipe = TrainRecipe.from_dict(loaded.recipe or {})
    segmenter = NetworkSegmenter(loaded.net, loaded.mode, device)
    rows = []
    for split, source in scored_sources(recipe, data_dir).items():
        scores = facts.scores.get(split, {}).get(f"cycle {facts.best.get('cycle')}", {})
        for row in ranked(split, scores.get("tiles", {})):
            place = list(source.tile_ids).index(row["tile_id"])
            image = source.read_tile(place).image
            found = segment(segmenter.raw_maps(image), recipe.net.post_proc, recipe.smallest_area)
            pictures = compared(image, source.annotation(place).inst_map, found)
            name = re.sub(r"\W", "_", f"{split}_{row['which']}") + ".png"
            write_png(run.path / "scored" / name, sheet([pictures]))
            rows.append({**row, "file": name, "boxes": boxes([pictures])[0]})
    if rows:
        run.write_json("scored/index.json", rows)


def scored_sources(recipe: TrainRecipe, data_dir: str) -> dict[str, AnnotatedSource]:
    """The annotated splits of the data that no run learns from."""
    splits = open_source(recipe.data, data_dir, with_patches=False)
    return {**({"valid": splits.valid} if splits.valid else {}), **splits.test}


def score_table(rows: dict[str, Any]) -> str:
    """{split: {arm: {'mean': {name: float}}}} -> lines of a table."""
    lines = [f"{'split':<14} {'arm':<28} " + " ".join(f"{name:>6}" for name in SHOWN)]
    for split, arms in rows.items():
        for arm, scores in arms.items():
            numbers = " ".join(f"{scores['mean'][name]:6.3f}" for name in SHOWN)
            lines.append(f"{split:<14} {arm:<28} {numbers}")
    return "\n".join(lines)


def score_in_own_process(run: RunDir, data_dir: str, device: str, ranks: Ranks = ALONE) -> bool:
    """Score the run apart from the processes that trained, each of `ranks` a share. Returns whether it went well.

    Raises what this process is asked to do meanwhile (see signals.py), and leaves none behind.
    """
    spawn = multiprocessing.get_context("spawn")
    answers, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_score_apart, args=(theirs, str(run.path), data_dir, device, ranks))
    process.start()
    theirs.close()
    try:
        answer = _answer_of(process, answers)
    finally:
        process.terminate()
        process.join()
    shares = ranks.gather([answer])
    faults = [share for share in shares if isinstance(share, str)]
    if ranks.leads and faults:
        print(f"The run is trained but not scored: {faults[0]}", file=sys.stderr)
    elif ranks.leads:
        _report(run, [share for share in shares if not isinstance(share, str)])
    return not faults


def _answer_of(process: BaseProcess, answers: Connection) -> Shares | str:
    try:
        answer: Shares | str = answers.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGTERM:  # a cluster ends the processes of a job one after the other
            stop_request().heed_within(2.0)
        return "the process that scores has ended without a word (out of memory, perhaps)."
    process.join()
    return answer


def _score_apart(answer: Connection, log_dir: str, data_dir: str, device: str, ranks: Ranks) -> None:
    try:
        answer.send(_score_nets(log_dir, data_dir, device, ranks))
    except HoverNetCyclicError as error:
        answer.send(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # the parent is interrupted too, and says so


def show_in_own_process(run: RunDir, data_dir: str, device: str) -> None:
    """Run `show_scored` apart from the process that trained. Pictures that cannot be made are told in a line."""
    process = multiprocessing.get_context("spawn").Process(target=_show_apart, args=(str(run.path), data_dir, device))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
        process.join()


def _show_apart(log_dir: str, data_dir: str, device: str) -> None:
    try:
        show_scored(log_dir, data_dir, device)
    except (HoverNetCyclicError, OSError) as error:
        sys.exit(f"The scored tiles are not in the report: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # as above
