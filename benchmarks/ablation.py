"""What each part of the method is worth: the same run without it, or with another in its place.

Usage:
  ablation.py [options]
  ablation.py (-h | --help)

Options:
  --data_dir=<dir>    Folder that the recipe's reader opens. [default: ../shared/data]
  --log_dir=<dir>     Folder of the runs, one for each arm and seed; what is finished there is not trained again.
                      [default: logs/ablation]
  --recipe=<name>     An image-level recipe of config.py. [default: benchmark]
  --arms=<names>      Comma list of those below, or all. [default: all]
  --cycles=<n>        Cycles of each run, but where the arm is about them; the recipe's if not given.
  --steps=<n>         Back-end steps of the first cycle; the recipe's if not given.
  --steps_later=<n>   Those of each later cycle; the recipe's if not given.
  --seeds=<ns>        Comma list of seeds; with several, mean and standard deviation are told. [default: 10]
  --gpu=<ids>         As for run_train.py. [default: cpu]
  --views=<n>         From how many sides each network is asked when it is scored, as by run_infer.py. [default: 1]
  --score_only        Train nothing: score what is there.
  --valid_only        Score on the validation split alone: what a design may be chosen by.
  --out=<file>        Also write the table as JSON.
  -h --help           Show this text.

Run it from the repository root as `python -m benchmarks.ablation`. Each run but `masks` trains in a process that opens
no label file; it is scored here afterwards, by the network that the run itself chose. Arms:

{arms}
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from docopt import docopt

import config
from benchmarks.accuracy import arm_recipe, cost_of, score_network, train
from benchmarks.json_report import write_report
from hovernet_cyclic.command_line import whole_number
from hovernet_cyclic.core.errors import HoverNetCyclicError, RecipeError
from hovernet_cyclic.core.settings import LARGEST_SEED, MOST_VIEWS, TrainRecipe
from hovernet_cyclic.training.evaluate import scored_sources
from hovernet_cyclic.training.run_dir import RunDir, is_same_run

Change = Callable[[TrainRecipe], TrainRecipe]
SHOWN = ("dice", "aji", "pq")


def changed(**parts: Any) -> Change:
    """A recipe with some settings replaced; the settings of a part are given as a dict."""

    def change(recipe: TrainRecipe) -> TrainRecipe:
        new = {
            name: dataclasses.replace(getattr(recipe, name), **value) if isinstance(value, dict) else value
            for name, value in parts.items()
        }
        return dataclasses.replace(recipe, **new)

    return change


def same_steps_in_one_cycle(recipe: TrainRecipe) -> TrainRecipe:
    """All steps of the recipe's cycles, on the pseudo masks of the first."""
    cycles = recipe.num_cycles
    return changed(
        num_cycles=1,
        front_end={"steps_first": recipe.front_end.steps_in(cycles).stop},
        back_end={"steps": recipe.back_end.steps_in(cycles).stop},
    )(recipe)


def everything_taught(recipe: TrainRecipe) -> TrainRecipe:
    """What is not trusted is background; in a first of several cycles, what would not be trusted later either."""
    masks = recipe.pseudo_masks
    taught = masks.trust_above if recipe.num_cycles == 1 else min(masks.trust_above, masks.trust_later)
    return changed(pseudo_masks={"dismiss_below": taught, "trust_later": taught, "dark_quantile": 1.0})(recipe)


def drawn_masks(recipe: TrainRecipe) -> TrainRecipe:
    """What image-level labels are measured against."""
    return arm_recipe(recipe, "masks", 0)


def all_arms() -> dict[str, tuple[str, Change]]:
    """Arm -> what it is, and its recipe made from the whole one."""
    alone = {"to_student": "first", "to_classifier": False}
    return {
        "whole": ("the recipe as it is", changed()),
        "one_cycle": ("the first cycle alone", changed(num_cycles=1)),
        "more_steps": ("as many steps on the first cycle's pseudo masks, no second cycle", same_steps_in_one_cycle),
        "self_training": (
            "later cycles renew the pseudo masks by the teacher alone: no front end, no encoder handed over",
            changed(**alone, front_end={"steps_later": 1}),
        ),
        "no_round_trip": ("the encoder is handed to the student once, and never back", changed(**alone)),
        "to_classifier": ("handed back to the classifier, and to the student once", changed(to_student="first")),
        "to_student": ("handed to the student in each cycle, and never back", changed(to_classifier=False)),
        "fresh_encoder": ("never handed over", changed(to_student="none", to_classifier=False)),
        "cam": ("class activation maps in place of evidence", changed(pseudo_masks={"cam": "cam"})),
        "grad_cam": ("Grad-CAM in place of evidence", changed(pseudo_masks={"cam": "grad_cam"})),
        "layer_cam": ("LayerCAM in place of evidence", changed(pseudo_masks={"cam": "layer_cam"})),
        "untrained": (
            "a classifier that has learnt nothing: what the labels of patches are worth to the pseudo masks",
            changed(front_end={"steps_first": 1, "steps_later": 1}),
        ),
        "no_stain": (
            "the classifier is not told that the palest pixels are no nuclei",
            changed(front_end={"pale_weight": 0.0}),
        ),
        "stars": (
            "star-convex outlines round seeds among the candidates, and ranks for trust that suit the longer list",
            changed(
                candidates={"seed_radii_um": (2.0, 3.0, 4.5)},
                pseudo_masks={"dismiss_below": 0.4, "trust_later": 0.7},
                back_end={"paste_above": 0.8},
            ),
        ),
        "within_tile": (
            "candidates ranked by half among those of their own tile",
            changed(pseudo_masks={"within_tile": 0.5}),
        ),
        "less_doubtful": (
            "fewer dark pixels left out: only a tile's darkest quarter, where they are evident",
            changed(pseudo_masks={"dark_quantile": 0.75, "faint_evidence": 0.0}),
        ),
        "nothing_ignored": ("what is not trusted is background", everything_taught),
        "hv_everywhere": (
            "the distance maps are taught on pixels that are not trusted too, as background",
            changed(back_end={"hv_everywhere": True}),
        ),
        "consistency": (
            "the student is to agree with the teacher on pixels that are not trusted",
            changed(back_end={"consistency_weight": 0.1}),
        ),
        "no_ema": ("the teacher is the student itself", changed(back_end={"ema_decay": 0.0})),
        "widened": ("pseudo masks renewed half-way through each cycle too", changed(back_end={"widen_rounds": 1})),
        "one_view": ("the teacher is asked from one side", changed(pseudo_masks={"teacher_views": 1})),
        "no_pasting": ("no nuclei pasted", changed(back_end={"paste_share": 0.0})),
        "none_pale": ("no pasted nucleus made pale inside", changed(back_end={"pale_share": 0.0})),
        "no_canvases": ("no canvases of negative patches", changed(back_end={"negatives_per_batch": 0})),
        "masks": ("the drawn masks of all tiles, with as many back-end steps", drawn_masks),
        "any_size": ("nuclei of any size are told", changed(net={"smallest_um2": 0.5})),
    }


def main() -> int:
    listed = "\n".join(f"  {name:<16} {text}" for name, (text, _) in all_arms().items())
    arguments = docopt((__doc__ or "").format(arms=listed))
    try:
        runs = chosen_runs(arguments)
        views = whole_number("--views", arguments["--views"], 1, MOST_VIEWS)
        for run, recipe in runs.values():
            check_settings(run, recipe)
        for run, recipe in runs.values():
            if not (arguments["--score_only"] or run.net.exists()):
                train(recipe, run, arguments)
        report = scored(arguments, runs, views)
    except HoverNetCyclicError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(report))
    if arguments["--out"]:
        write_report(Path(arguments["--out"]), report)
    return 0


Runs = dict[tuple[str, int], tuple[RunDir, TrainRecipe]]


def chosen_runs(arguments: dict[str, Any]) -> Runs:
    """(arm, seed) -> its folder and recipe, seeds first: each seed's arms stand together. Raises RecipeError."""
    arms = all_arms()
    names = list(arms) if arguments["--arms"] == "all" else arguments["--arms"].split(",")
    unknown = [name for name in names if name not in arms]
    if unknown or arguments["--recipe"] not in config.RECIPES:
        raise RecipeError(
            f"--arms takes all or some of {', '.join(arms)}; --recipe one of {', '.join(config.RECIPES)}."
        )
    whole = config.RECIPES[arguments["--recipe"]]()
    if arguments["--cycles"]:
        whole = dataclasses.replace(whole, num_cycles=whole_number("--cycles", arguments["--cycles"]))
    for option, name in (("--steps", "steps"), ("--steps_later", "steps_later")):
        if arguments[option]:
            whole = changed(back_end={name: whole_number(option, arguments[option])})(whole)
    runs = {}
    for text in arguments["--seeds"].split(","):
        seed = whole_number("--seeds", text.strip(), highest=LARGEST_SEED)
        for name in names:
            run = RunDir(Path(arguments["--log_dir"]) / f"{name}_{seed}")
            runs[name, seed] = run, dataclasses.replace(arms[name][1](whole), seed=seed)
    return runs


def check_settings(run: RunDir, recipe: TrainRecipe) -> None:
    """Raises RecipeError where the folder holds a run of other settings, such as fewer steps: arms share names."""
    found = run.read_json("recipe.json", None)
    begun = found and found["recipe"]
    if begun and not (is_same_run(begun, recipe) and begun["num_cycles"] == recipe.num_cycles):
        raise RecipeError(f"{run.path}: a run of other settings is here: give another --log_dir.")


def scored(arguments: dict[str, Any], runs: Runs, views: int) -> dict[str, Any]:
    """{'rows': {split: {arm: {seed: scores}}}, 'cost': {arm: {seed: ...}}, 'command'} of the runs that are finished."""
    finished = {key: value for key, value in runs.items() if value[0].net.exists()}
    if not finished:
        raise RecipeError(f"{arguments['--log_dir']}: no run is finished here: leave --score_only out.")
    rows: dict[str, Any] = {}
    cost: dict[str, Any] = {}
    for (arm, seed), (run, recipe) in finished.items():
        cost.setdefault(arm, {})[seed] = cost_of(run, recipe)
        for split, source in scored_sources(recipe, arguments["--data_dir"]).items():
            if arguments["--valid_only"] and split != "valid":
                continue
            scores = score_network(run.net, source, arguments["--gpu"], views)
            rows.setdefault(split, {}).setdefault(arm, {})[seed] = scores["mean"]
    return {"rows": rows, "cost": cost, "command": sys.argv}


def table(report: dict[str, Any]) -> str:
    """Lines: of each split and arm the mean scores over seeds, and their standard deviation where there are several."""
    lines = [f"{'split':<8} {'arm':<16} {'seeds':>5} " + " ".join(f"{name:>12}" for name in SHOWN) + "  minutes  steps"]
    for split, arms in report["rows"].items():
        for arm, seeds in arms.items():
            values = np.array([[scores[name] for name in SHOWN] for scores in seeds.values()])
            cells = " ".join(f"{_spread(values[:, i]):>12}" for i in range(len(SHOWN)))
            spent = list(report["cost"][arm].values())
            minutes = np.mean([one["minutes"] for one in spent])
            steps = f"{spent[0]['front_end_steps']}+{spent[0]['back_end_steps']}"
            lines.append(f"{split:<8} {arm:<16} {len(seeds):>5} {cells} {minutes:8.1f}  {steps}")
    return "\n".join(lines)


def _spread(values: Any) -> str:
    return f"{values.mean():.3f}" + (f" +-{values.std(ddof=1):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
