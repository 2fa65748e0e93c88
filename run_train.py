"""Learn nuclei instance segmentation from image-level labels.

Usage:
  run_train.py [options]
  run_train.py --view=<split> [options]
  run_train.py (-h | --help)
  run_train.py --version

Options:
  -h --help          Show this text.
  --version          Show the version.
  --recipe=<name>    A function of config.py: demo, folder, benchmark, monusac, ccrcc, consep, fast, original, custom;
                     benchmark_mixed, benchmark_masks, consep_types and hovernet learn from drawn masks.
                     [default: demo]
  --data_dir=<dir>   Folder of the data. The demo draws its own there. [default: datasets]
  --log_dir=<dir>    Folder of this run; logs/<recipe> if not given.
  --gpu=<ids>        Comma list such as 0,1: a process for each, or cpu. The first GPU if there is any, else the CPU,
                     if not given. Over several machines: torchrun, see docs/several_devices.md.
  --num_workers=<n>  Processes that prepare the batches of each device; 0 for a thread. By its cores if not given.
  --seed=<n>         Seed of everything that is drawn; the recipe's if not given.
  --resume           Go on with the run in --log_dir where it was last saved (at most minutes before it stopped).
  --no_scores        Do not score the finished run, even where the data has drawn masks to score against.
  --view=<split>     Write a sheet of what training or scoring would be given, and stop: train or valid. It is opened
                     where there is a screen.
  --report           Write LOG_DIR/report.html anew of what the run in --log_dir has left so far, and stop. It is
                     opened where there is a screen.
  --check_data       Read all images and drawn masks once, say what is there and what is wrong with it, and stop.

The product is LOG_DIR/net.tar, which run_infer.py takes as --model_path; LOG_DIR/report.html shows how it came about,
from the first finished cycle on. Drawn masks, where there are any, are opened after training only, to report scores,
unless the recipe's supervision says that it learns from them. Of what trains nothing, --view=valid and --check_data
open them too. Exit code: 0 done, 1 trained but not scored, or --check_data found splits that share a picture, labels
that contradict each other or are missing, or files that cannot be read, 2 bad input. On SIGTERM, as clusters send it,
a run saves its state, says with which command to go on, and ends with 0; on Ctrl-C it ends with 130.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hovernet_cyclic.command_line import exit_with, is_one_of_several, leads, open_on_screen, whole_number
from hovernet_cyclic.core.errors import HoverNetCyclicError, RecipeError
from hovernet_cyclic.core.settings import LARGEST_SEED, TrainRecipe

if TYPE_CHECKING:
    from hovernet_cyclic.core.types import DataSplits
    from hovernet_cyclic.training.run_dir import RunDir
    from models.devices import Device
    from models.ranks import Ranks


class Plan(NamedTuple):
    """What a run learns from, in words, and what is to be called with folder, device, ranks; answers with net.tar."""

    content: str
    start: Callable[[RunDir, Device, Ranks], Path]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. argv: arguments without the program's name."""
    from docopt import DocoptExit

    from hovernet_cyclic.command_faults import option_fault, path_fault
    from hovernet_cyclic.training.signals import Preempted, listening

    words = sys.argv[1:] if argv is None else list(argv)
    try:
        with listening():
            return start(words)
    except DocoptExit as error:
        return refuse(option_fault(error, words, __doc__ or ""))
    except HoverNetCyclicError as error:
        return refuse(str(error))
    except OSError as error:
        return refuse(path_fault(error))
    except Preempted:
        return refuse("Stopped by SIGTERM.", 143)
    except KeyboardInterrupt:
        return refuse("Stopped. What was finished is kept: give --resume to go on.", 130)


def refuse(sentence: str, code: int = 2) -> int:
    """Say what is wrong, once where several processes were started. Returns the exit code."""
    if leads():
        print(sentence, file=sys.stderr)
    return code


def start(words: Sequence[str]) -> int:
    """Do what the words of the command line say; returns the exit code."""
    from docopt import docopt

    from hovernet_cyclic import __version__
    from hovernet_cyclic.training.signals import Preempted

    arguments = docopt(__doc__ or "", list(words), version=__version__)
    recipe = chosen_recipe(arguments)
    for asked, answer in (("--check_data", check), ("--report", report), ("--view", view)):
        if arguments[asked]:
            return answer(arguments, recipe) if leads() else 0  # these are the work of one
    try:
        return train(arguments, recipe, words)
    except Preempted:
        return say_how_to_go_on(words, recipe)


def say_how_to_go_on(words: Sequence[str], recipe: TrainRecipe) -> int:
    """What a run says that SIGTERM has stopped, once of several processes. Returns the exit code."""
    if leads():
        print(f"Stopped by SIGTERM. To go on: {command_to_go_on(words, recipe)}", flush=True)
    return 0


def command_to_go_on(words: Sequence[str], recipe: TrainRecipe) -> str:
    """The command line that goes on with a run that was begun, or stopped before it had, with these words."""
    resume = ["--resume"] if (Path(recipe.log_dir) / "recipe.json").exists() else []
    begun = [word for word in words if word != "--resume"]
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") == here  # on this machine alone
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={here}"] if by_torchrun else []
    return shlex.join([sys.executable, *launcher, __file__, *begun, *resume])


def chosen_recipe(arguments: Mapping[str, Any]) -> TrainRecipe:
    """The recipe that the arguments name, with their seed and folder. Raises RecipeError."""
    from config import RECIPES

    name = arguments["--recipe"]
    if name not in RECIPES:
        raise RecipeError(f"--recipe={name}: config.py has no such recipe: use one of {', '.join(RECIPES)}.")
    if arguments["--view"] == "":
        raise RecipeError("--view=: use train or valid.")
    recipe = RECIPES[name]()
    if arguments["--seed"] is not None:
        recipe = dataclasses.replace(recipe, seed=whole_number("--seed", arguments["--seed"], highest=LARGEST_SEED))
    return dataclasses.replace(recipe, log_dir=arguments["--log_dir"] or str(Path(recipe.log_dir) / recipe.name))


def train(arguments: Mapping[str, Any], recipe: TrainRecipe, words: Sequence[str]) -> int:
    """Train in this process, or start one for each device of --gpu. words: those of the command line."""
    from hovernet_cyclic.training.devices import with_workers
    from hovernet_cyclic.training.processes import STOPPED_UNHEARD, run_as_rank, run_processes
    from models.devices import choose_devices
    from models.ranks import ALONE

    asked = arguments["--num_workers"]
    workers = None if asked is None else whole_number("--num_workers", asked)
    if is_one_of_several():
        work, stopped = partial(train_as, arguments, recipe), partial(say_how_to_go_on, words, recipe)
        return run_as_rank(work, arguments["--gpu"], workers, recipe.log_dir, stopped)
    device, *others = choose_devices(arguments["--gpu"])
    if others:
        code = run_processes([sys.executable, str(Path(__file__).resolve()), *words], 1 + len(others))
        return say_how_to_go_on(words, recipe) if code == STOPPED_UNHEARD else code
    return train_as(arguments, recipe, device, with_workers(ALONE, device, workers))


def train_as(arguments: Mapping[str, Any], recipe: TrainRecipe, device: Device, ranks: Ranks) -> int:
    """Open the data, train as one of `ranks`, and score in a process of its own."""
    from hovernet_cyclic.training.devices import check_share, for_training
    from hovernet_cyclic.training.evaluate import score_in_own_process, show_in_own_process
    from hovernet_cyclic.training.report import REPORT_FILE, report_run
    from hovernet_cyclic.training.run_dir import RunDir, describe_run
    from hovernet_cyclic.training.signals import stop_request

    check_share(recipe, ranks)
    run = RunDir.find(recipe.log_dir, arguments["--resume"])  # quick to refuse, before the data is drawn or read
    splits = open_in_turn(arguments, recipe, ranks)
    encoder = "" if run.has_state else pretrained_encoder(recipe)
    plan = {"image_level": image_level, "mixed": mixed, "masks": masks}[recipe.supervision]
    content, start = plan(recipe, splits, arguments["--data_dir"], ranks)
    ranks.wait()  # nothing is made before all have found their data sound
    if ranks.leads:
        run = RunDir.open(recipe.log_dir, arguments["--resume"])
        describe_run(run, recipe, arguments["--data_dir"])
        print(f"{recipe.name}: {content}{encoder}", flush=True)
    try:
        net = start(run, for_training(device), ranks)
    except HoverNetCyclicError:
        if ranks.leads:
            report_run(run, print)  # what went before the fault is there to be looked at
        raise
    stop_request().heed()  # what came while the last files were written
    wanted = not arguments["--no_scores"] and bool(splits.valid or splits.test)
    where = str(device.torch_device)
    if ranks.leads:
        print(f"The network: {net}", flush=True)
    scored = not wanted or score_in_own_process(run, arguments["--data_dir"], where, ranks)
    if ranks.leads:
        if wanted and scored:
            show_in_own_process(run, arguments["--data_dir"], where)
            report_run(run, print)
        print(f"The report: {run.path / REPORT_FILE}")
    return 0 if scored else 1


def open_in_turn(arguments: Mapping[str, Any], recipe: TrainRecipe, ranks: Ranks) -> DataSplits:
    """The data, opened by the first process before the others, for that may draw or convert it. Raises DatasetError."""
    from dataloader.datasets import open_source

    if not ranks.leads:
        ranks.wait()
    splits = open_source(recipe.data, arguments["--data_dir"], with_patches=recipe.supervision != "masks")
    if ranks.leads:
        ranks.wait()
    return splits


def image_level(recipe: TrainRecipe, splits: DataSplits, data_dir: str, ranks: Ranks) -> Plan:
    """The cycle on image-level labels: no source of masks is handed on. Reads all images once, dealt out to `ranks`.

    Raises DatasetError or RecipeError.
    """
    from hovernet_cyclic.training.cyclic import check_source, run_cycles

    if recipe.net.nr_types is not None and recipe.supervision == "image_level":
        raise RecipeError(
            f"net.nr_types is {recipe.net.nr_types}, but image-level labels teach no types: leave it out, or "
            "learn from drawn masks (supervision)."
        )
    check_source(recipe, splits.train, ranks)
    content = f"{len(splits.train.tile_ids)} tiles, {len(splits.train.patch_labels)} labelled patches"
    return Plan(content, lambda run, device, ranks: run_cycles(recipe, splits.train, run, device, ranks=ranks))


def mixed(recipe: TrainRecipe, splits: DataSplits, data_dir: str, ranks: Ranks) -> Plan:
    """The cycle with some drawn tiles. Reads all once. Raises DatasetError or RecipeError."""
    from hovernet_cyclic.training.drawn_tiles import annotated_source, drawn_tiles
    from hovernet_cyclic.training.mixed import run_mixed_cycles

    annotated = annotated_source(recipe, splits, data_dir)
    content = (
        f"{image_level(recipe, splits, data_dir, ranks).content}, {len(drawn_tiles(recipe, annotated))} drawn tiles"
    )
    return Plan(
        content,
        lambda run, device, ranks: run_mixed_cycles(recipe, splits.train, annotated, run, device, ranks=ranks),
    )


def masks(recipe: TrainRecipe, splits: DataSplits, data_dir: str, ranks: Ranks) -> Plan:
    """HoVer-Net on drawn tiles alone. Reads all once. Raises DatasetError or RecipeError."""
    from hovernet_cyclic.training.drawn_tiles import annotated_source, drawn_tiles
    from hovernet_cyclic.training.supervised import run_supervised

    annotated = annotated_source(recipe, splits, data_dir)
    content = f"{len(drawn_tiles(recipe, annotated))} drawn tiles"
    return Plan(content, lambda run, device, ranks: run_supervised(recipe, annotated, run, device, ranks=ranks))


def pretrained_encoder(recipe: TrainRecipe) -> str:
    """What is taken from the encoder that the recipe starts from; '' without one. Raises CheckpointError."""
    path = recipe.net.pretrained
    if path is None:
        return ""
    from models.pretrained import describe_pretrained, read_pretrained

    return f"\n{describe_pretrained(path, read_pretrained(path, recipe.net.mode), recipe.supervision != 'image_level')}"


def view(arguments: Mapping[str, Any], recipe: TrainRecipe) -> int:
    """Write the sheet of one split."""
    from dataloader.datasets import open_source
    from hovernet_cyclic.training.view import write_view

    split = arguments["--view"]
    if split not in ("train", "valid"):
        raise RecipeError(f"--view={split}: use train or valid.")
    splits = open_source(recipe.data, arguments["--data_dir"], with_patches=recipe.supervision != "masks")
    path = write_view(splits, split, recipe)
    print(f"The sheet: {path}")
    open_on_screen(path)
    return 0


def report(arguments: Mapping[str, Any], recipe: TrainRecipe) -> int:
    """Write the report of the run in the recipe's folder. Raises RecipeError where there is none."""
    from hovernet_cyclic.training.report import write_report
    from hovernet_cyclic.training.run_dir import RunDir

    path = write_report(RunDir(recipe.log_dir))
    print(f"The report: {path}")
    open_on_screen(path)
    return 0


def check(arguments: Mapping[str, Any], recipe: TrainRecipe) -> int:
    """Print what the data holds; 1 where something is wrong with it. A recipe without types is told the set's own."""
    from dataloader.datasets import known_types, open_source
    from hovernet_cyclic.training.check_data import check_data, describe

    data = dataclasses.replace(recipe.data, type_names=recipe.data.type_names or known_types(recipe.data.reader))
    splits = open_source(data, arguments["--data_dir"], with_patches=recipe.supervision != "masks")
    report = check_data(splits, data, recipe.seed)
    print(describe(report, data, arguments["--data_dir"]))
    return 0 if report.sound else 1


if __name__ == "__main__":
    exit_with(main)
