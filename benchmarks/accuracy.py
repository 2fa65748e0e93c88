"""Accuracy on real tissue, by what is learnt from, beside Otsu's threshold with a watershed.

Usage:
  accuracy.py [options]
  accuracy.py (-h | --help)

Options:
  --data_dir=<dir>         Folder that the recipe's reader opens. [default: ../shared/data]
  --log_dir=<dir>          Folder of the image-level run; the other arms' are called after it. [default: logs/accuracy]
  --recipe=<name>          An image-level recipe of config.py, whose network all arms share. [default: benchmark]
  --arms=<names>           Comma list of image_level, mixed and masks: what is learnt from. [default: image_level]
  --annotated_tiles=<n>    How many training tiles, first by name, `mixed` has drawn masks of. [default: 2]
  --minutes=<m>            Give each arm as many steps as fill this time here; the recipe's steps if not given.
  --gpu=<ids>              As for run_train.py. [default: cpu]
  --seed=<n>               Seed of the runs. [default: 10]
  --views=<n>              From how many sides each network is asked when it is scored, as by run_infer.py. [default: 1]
  --reuse                  Score the runs that are there, and do not train.
  --out=<file>             Also write the table as JSON.
  -h --help                Show this text.

Run it from the repository root as `python -m benchmarks.accuracy`. Each arm is trained in a process of its own; that of
`image_level` opens no label file. Labels to score by are read here, afterwards.

With --minutes, each arm is first run twice for few steps. A straight line through the two times gives what it spends
whatever its steps (candidates, galleries, judging) and what a step costs; the steps that fill the rest are then taken,
in the proportions of the recipe. What was really spent is printed with the table. Without --minutes, `masks` takes all
back-end steps of the recipe's cycles.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

from docopt import docopt

import config
import run_train
from benchmarks.baselines import otsu_watershed
from benchmarks.json_report import write_report
from hovernet_cyclic.command_line import whole_number
from hovernet_cyclic.core.comparison import SCORE_NAMES, score_pairs
from hovernet_cyclic.core.errors import HoverNetCyclicError, RecipeError
from hovernet_cyclic.core.settings import MOST_VIEWS, TrainRecipe
from hovernet_cyclic.core.types import AnnotatedSource, Annotation
from hovernet_cyclic.training.devices import with_workers
from hovernet_cyclic.training.evaluate import score_source, score_table, scored_sources
from hovernet_cyclic.training.run_dir import RunDir
from infer.base import NetworkSegmenter
from infer.views import MeanOfViews
from models.checkpoint import load_network
from models.devices import choose_device
from models.ranks import ALONE

ARMS = ("image_level", "mixed", "masks")
PROBES = (0.02, 0.08)  # shares of the recipe's steps that the two short runs take


def main() -> int:
    arguments = docopt(__doc__ or "")
    try:
        arms = chosen_arms(arguments)
        views = whole_number("--views", arguments["--views"], 1, MOST_VIEWS)
        if not arguments["--reuse"]:
            for arm, recipe in arms.items():
                train(in_time(recipe, arguments), folder(arguments, arm), arguments)
        report = scored(arguments, list(arms), views)
    except HoverNetCyclicError as error:
        print(error, file=sys.stderr)
        return 2
    show(report)
    if arguments["--out"]:
        write_report(Path(arguments["--out"]), report)
    return 0


def chosen_arms(arguments: dict[str, Any]) -> dict[str, TrainRecipe]:
    """Arm -> its recipe, which differs from the others' in what is learnt from alone. Raises RecipeError."""
    names = arguments["--arms"].split(",")
    unknown = [name for name in names if name not in ARMS]
    if unknown or arguments["--recipe"] not in config.RECIPES:
        raise RecipeError(f"--arms takes {', '.join(ARMS)}, and --recipe one of {', '.join(config.RECIPES)}.")
    whole = dataclasses.replace(config.RECIPES[arguments["--recipe"]](), seed=int(arguments["--seed"]))
    if whole.supervision != "image_level":
        raise RecipeError(f"--recipe={whole.name} learns from drawn masks: give an image-level one, and --arms.")
    return {name: arm_recipe(whole, name, int(arguments["--annotated_tiles"])) for name in names}


def arm_recipe(whole: TrainRecipe, arm: str, tiles: int) -> TrainRecipe:
    """The image-level recipe with what the arm learns from. masks: one cycle of as many back-end steps as all have."""
    if arm == "mixed":
        data = dataclasses.replace(whole.data, annotated_tiles=tiles)
        return dataclasses.replace(whole, supervision=arm, data=data)
    if arm == "masks":
        back_end = dataclasses.replace(whole.back_end, steps=whole.back_end.steps_in(whole.num_cycles).stop)
        return dataclasses.replace(whole, supervision=arm, back_end=back_end, num_cycles=1)
    return whole


def in_time(recipe: TrainRecipe, arguments: dict[str, Any]) -> TrainRecipe:
    """The recipe with as many steps as fill --minutes; as it is without. Raises RecipeError where they are too few."""
    if arguments["--minutes"] is None:
        return recipe
    spent = [probe_seconds(scaled(recipe, share), arguments) for share in PROBES]
    share = share_that_fills(60 * float(arguments["--minutes"]), PROBES, (spent[0], spent[1]))
    if share <= 0:
        raise RecipeError(f"--minutes={arguments['--minutes']}: '{recipe.supervision}' takes more without any step.")
    return scaled(recipe, share)


def probe_seconds(recipe: TrainRecipe, arguments: dict[str, Any]) -> float:
    """Seconds that the cycles of a recipe take."""
    with tempfile.TemporaryDirectory() as made:
        train(recipe, RunDir(Path(made) / "run"), arguments)
        return training_seconds(RunDir(Path(made) / "run"))


def share_that_fills(seconds: float, shares: tuple[float, float], spent: tuple[float, float]) -> float:
    """Where the straight line through (share, seconds spent) reaches `seconds`."""
    per_share = (spent[1] - spent[0]) / (shares[1] - shares[0])
    return shares[0] + (seconds - spent[0]) / max(per_share, 1e-9)


def scaled(recipe: TrainRecipe, share: float) -> TrainRecipe:
    """The recipe with a share of its steps, one at least in each stage."""
    front_end, back_end = recipe.front_end, recipe.back_end
    fewer = {name: max(1, round(getattr(front_end, name) * share)) for name in ("steps_first", "steps_later")}
    steps, later = (max(back_end.widen_rounds + 1, round(len(back_end.steps_in(cycle)) * share)) for cycle in (1, 2))
    frozen = min(steps, round(back_end.frozen_steps * share))
    return dataclasses.replace(
        recipe,
        front_end=dataclasses.replace(front_end, **fewer),
        back_end=dataclasses.replace(back_end, steps=steps, steps_later=later, frozen_steps=frozen),
    )


def folder(arguments: dict[str, Any], arm: str) -> RunDir:
    return RunDir(arguments["--log_dir"] + ("" if arm == "image_level" else f"_{arm}"))


def train(recipe: TrainRecipe, run: RunDir, arguments: dict[str, Any]) -> None:
    """Train apart from the process that scores. Raises RecipeError where that did not go well."""
    options = {name: arguments[name] for name in ("--data_dir", "--gpu")} | {"--resume": False, "--no_scores": True}
    recipe = dataclasses.replace(recipe, log_dir=str(run.path))
    process = multiprocessing.get_context("spawn").Process(target=_train_apart, args=(options, recipe))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RecipeError(f"{run.path}: the arm '{recipe.supervision}' was not trained: see above.")


def _train_apart(options: dict[str, Any], recipe: TrainRecipe) -> None:
    try:
        device = choose_device(options["--gpu"])
        sys.exit(run_train.train_as(options, recipe, device, with_workers(ALONE, device, None)))
    except HoverNetCyclicError as error:
        sys.exit(str(error))


def scored(arguments: dict[str, Any], arms: list[str], views: int) -> dict[str, Any]:
    """{'rows': {split: {row: scores}}, 'arms': {arm: what it was and what it cost}, 'command'}. Raises RecipeError."""
    runs = {arm: folder(arguments, arm) for arm in arms}
    described = {arm: run.read_json("recipe.json", None) for arm, run in runs.items()}
    missing = [arm for arm, found in described.items() if found is None]
    if missing:
        raise RecipeError(f"{runs[missing[0]].path}: there is no run to score: leave --reuse out.")
    recipes = {arm: TrainRecipe.from_dict(found["recipe"]) for arm, found in described.items()}
    rows: dict[str, Any] = {}
    for name, source in scored_sources(recipes[arms[0]], arguments["--data_dir"]).items():
        rows[name] = {"Otsu + watershed": score_baseline(source)}
        for arm, run in runs.items():
            rows[name] |= score_arm(source, arm, run, arguments["--gpu"], views)
    cost = {arm: {**cost_of(runs[arm], recipes[arm]), **described[arm]} for arm in arms}
    return {"rows": rows, "arms": cost, "command": sys.argv}


def score_arm(source: AnnotatedSource, arm: str, run: RunDir, gpu: str, views: int) -> dict[str, Any]:
    """The rows of one arm, one a cycle: {row: {'mean': ..., 'tiles': ...}}."""
    rows = {}
    for cycle, path in run.cycle_nets():
        name = "masks" if arm == "masks" else f"{arm.replace('_', '-')}, cycle {cycle}"
        rows[name] = score_network(path, source, gpu, views)
    return rows


def score_network(path: Path, source: AnnotatedSource, gpu: str, views: int) -> dict[str, Any]:
    """Scores of a network of a run, asked from so many sides: {'mean': ..., 'tiles': ...}."""
    device, loaded = choose_device(gpu), load_network(path)
    assert loaded.recipe is not None, "a run writes its networks with their recipe"
    segmenter = NetworkSegmenter(loaded.net, loaded.mode, device.torch_device, dtype=device.dtype)
    return score_source(MeanOfViews(segmenter, views), source, TrainRecipe.from_dict(loaded.recipe))


def score_baseline(source: AnnotatedSource) -> dict[str, Any]:
    pairs = []
    for i in range(len(source.tile_ids)):
        tile = source.read_tile(i)
        pairs.append((source.annotation(i), Annotation(tile.tile_id, otsu_watershed(tile.image))))
    mean = score_pairs(pairs).values.mean(axis=0)
    return {"mean": dict(zip(SCORE_NAMES, map(float, mean), strict=True))}


def training_seconds(run: RunDir) -> float:
    return sum(float(row["seconds"]) for row in run.read_json("cycles.json", []))


def cost_of(run: RunDir, recipe: TrainRecipe) -> dict[str, Any]:
    """Optimiser steps of either end, minutes of training, and what cycles.json says."""
    cycles = len(run.cycle_nets())
    return {
        "front_end_steps": 0 if recipe.supervision == "masks" else recipe.front_end.steps_in(cycles).stop,
        "back_end_steps": recipe.back_end.steps_in(cycles).stop,
        "minutes": training_seconds(run) / 60,
        "cycles": run.read_json("cycles.json", []),
    }


def show(report: dict[str, Any]) -> None:
    """Print the table, then what each arm cost."""
    print(score_table(report["rows"]))
    print(f"\n{'arm':<14} {'front-end steps':>16} {'back-end steps':>15} {'minutes':>8}  seed")
    for arm, cost in report["arms"].items():
        steps = f"{cost['front_end_steps']:>16} {cost['back_end_steps']:>15}"
        print(f"{arm:<14} {steps} {cost['minutes']:8.1f}  {cost['recipe']['seed']}")
    for arm, cost in report["arms"].items():
        for row in cost["cycles"]:
            print(f"{arm}, cycle {row['cycle']}: {row['reason']} ({row['seconds'] / 60:.1f} min)")
    versions = next(iter(report["arms"].values()))["versions"]
    print(f"command: {' '.join(report['command'])}")
    print("versions:", ", ".join(f"{name} {value}" for name, value in versions.items()))


if __name__ == "__main__":
    sys.exit(main())
