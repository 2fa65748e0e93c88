"""HoVer-Net's own training, on drawn masks alone (Graham et al., Medical Image Analysis 2019).

There is no front end, no pseudo mask and no cycle: what a run on image-level labels is measured against. As there, the
encoder may first be left as it is while the decoders learn; the product is the moving average of the student.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from dataloader.train_loader import TileSampler
from hovernet_cyclic.core.settings import BackEndSettings, TrainRecipe
from hovernet_cyclic.core.types import AnnotatedSource
from hovernet_cyclic.training.back_end import train_back_end
from hovernet_cyclic.training.devices import seed_everything
from hovernet_cyclic.training.drawn_tiles import drawn_tiles
from hovernet_cyclic.training.keeper import Keeper
from hovernet_cyclic.training.position import Position
from hovernet_cyclic.training.report import report_run
from hovernet_cyclic.training.run_dir import RunDir, StageLog
from hovernet_cyclic.training.signals import stop_request
from models.devices import Device
from models.hovernet.net_desc import input_shape
from models.ranks import ALONE, Ranks


class Phase(NamedTuple):
    """Steps of a run that share an optimiser and its schedule. frozen: whether the encoder is left as it is."""

    name: str
    steps: range
    frozen: bool


def phases(settings: BackEndSettings) -> list[Phase]:
    """The phases that have any step, in order."""
    frozen, steps = settings.frozen_steps, settings.steps
    both = Phase("decoders", range(frozen), True), Phase("all", range(frozen, steps), False)
    return [phase for phase in both if phase.steps]


def run_supervised(
    recipe: TrainRecipe,
    source: AnnotatedSource,
    run: RunDir,
    device: Device,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> Path:
    """Train on the drawn masks of `source` and return the checkpoint of the teacher.

    Goes on from the run's state where there is one. Writes cycle_1/net.tar, net.tar, cycles.json and state.tar. Asked
    to stop (see signals.py), it saves its state and raises what was asked. Raises DatasetError, RecipeError,
    TrainingError or CheckpointError for what cannot be used.
    """
    seed_everything(recipe.seed)
    drawn = drawn_tiles(recipe, source)
    tiles = list(drawn.values())
    settings = dataclasses.replace(recipe.back_end, consistency_weight=0.0)  # there is nothing that is not trusted
    shapes = (input_shape(recipe.net.mode, settings.patch_shape), settings.patch_shape)
    sampler = TileSampler(tiles, (None, ()), shapes, settings, recipe.seed)
    log = StageLog(run, quiet, ranks)
    with stop_request().deferred():
        keeper = Keeper.open(run, recipe, device, log, ranks)
        networks = keeper.networks
        keeper.clear_traces()
        log.note("data", tiles=len(tiles), drawn=sorted(drawn))
        log.open(run, device)
        if keeper.position.stage != "back_end":  # it begins, or was saved by a version that knew no positions
            keeper.position = phase_position(settings, networks.steps_done)
        while keeper.position.cycle == 1:
            phase = phases(settings)[keeper.position.part]
            networks.student.freeze_encoder(phase.frozen)
            stage = dataclasses.replace(log.stage(f"masks, {phase.name}", device), keeper=keeper)
            train_back_end(networks.student, networks.teacher, sampler, phase.steps, settings, stage)
            finish_phase(run, recipe, keeper, phase, ranks)
            if ranks.leads:
                log.flush()
                report_run(run, log.say)
        log.close()
        if ranks.leads:
            networks.save_net(run.net, recipe)
            report_run(run, log.say)
        ranks.wait()
    return run.net


def phase_position(settings: BackEndSettings, steps_done: int) -> Position:
    """Where a run stands between two phases; the run is done where its second cycle would begin."""
    done = sum(phase.steps.stop <= steps_done for phase in phases(settings))
    return Position(1, "back_end", done) if done < len(phases(settings)) else Position(2)


def finish_phase(run: RunDir, recipe: TrainRecipe, keeper: Keeper, phase: Phase, ranks: Ranks) -> None:
    """Note that a phase is done: what a resumed run needs, and the row of cycles.json."""
    networks = keeper.networks
    networks.steps_done, networks.cycles_done, networks.best_cycle = phase.steps.stop, 1, 1
    if ranks.leads:
        networks.save_net(run.cycle(1) / "net.tar", recipe)
        row = {
            "cycle": 1,
            "kept": True,
            "reason": f"{phase.steps.stop} steps on drawn masks",
            "steps": phase.steps.stop,
            "seconds": round(keeper.cycle_seconds, 1),
        }
        run.write_json("cycles.json", [row])
    keeper.arrive(phase_position(recipe.back_end, networks.steps_done))
