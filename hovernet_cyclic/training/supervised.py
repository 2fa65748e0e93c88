"""HoVer-Net's own training, on drawn masks alone (Graham et al., Medical Image Analysis 2019).

There is no front end, no pseudo mask and no cycle: what a run on image-level labels is measured against. As there, the
encoder may first be left as it is while the decoders learn; the product is the moving average of the student.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

from dataloader.train_loader import TileSampler
from hovernet_cyclic.core.settings import BackEndSettings, TrainRecipe
from hovernet_cyclic.core.types import AnnotatedSource
from hovernet_cyclic.training.back_end import train_back_end
from hovernet_cyclic.training.devices import seed_everything
from hovernet_cyclic.training.drawn_tiles import drawn_tiles
from hovernet_cyclic.training.networks import Networks
from hovernet_cyclic.training.report import report_run
from hovernet_cyclic.training.run_dir import RunDir, StageLog
from models.devices import Device
from models.hovernet.net_desc import input_shape


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
    recipe: TrainRecipe, source: AnnotatedSource, run: RunDir, device: Device, quiet: bool = False
) -> Path:
    """Train on the drawn masks of `source` and return the checkpoint of the teacher.

    Goes on from the last finished phase where `run.state` holds one. Writes cycle_1/net.tar, net.tar, cycles.json and
    state.tar. Raises DatasetError, RecipeError or CheckpointError for what cannot be used.
    """
    seed_everything(recipe.seed)
    drawn = drawn_tiles(recipe, source)
    tiles = list(drawn.values())
    networks = Networks.restore(run.state, recipe, device) if run.state.exists() else Networks.fresh(recipe, device)
    settings = dataclasses.replace(recipe.back_end, consistency_weight=0.0)  # there is nothing that is not trusted
    shapes = (input_shape(recipe.net.mode, settings.patch_shape), settings.patch_shape)
    sampler = TileSampler(tiles, (None, ()), shapes, settings, recipe.seed)
    log = StageLog(run, quiet)
    log.note("data", tiles=len(tiles), drawn=sorted(drawn))
    log.open(run, device)
    for phase in phases(settings):
        if networks.steps_done < phase.steps.stop:
            began = time.monotonic()
            networks.student.freeze_encoder(phase.frozen)
            stage = log.stage(f"masks, {phase.name}", device)
            train_back_end(networks.student, networks.teacher, sampler, phase.steps, settings, stage)
            finish_phase(run, recipe, networks, phase, time.monotonic() - began)
            log.flush()
            report_run(run, log.say)
    log.close()
    networks.save_net(run.net, recipe)
    report_run(run, log.say)
    return run.net


def finish_phase(run: RunDir, recipe: TrainRecipe, networks: Networks, phase: Phase, seconds: float) -> None:
    """Note that a phase is done: what a resumed run needs, and the row of cycles.json."""
    before = [row for row in run.read_json("cycles.json", []) if row["steps"] <= phase.steps.start]
    networks.steps_done, networks.cycles_done, networks.best_cycle = phase.steps.stop, 1, 1
    networks.save_net(run.cycle(1) / "net.tar", recipe)
    row = {
        "cycle": 1,
        "kept": True,
        "reason": f"{phase.steps.stop} steps on drawn masks",
        "steps": phase.steps.stop,
        "seconds": round(seconds + sum(row["seconds"] for row in before), 1),
    }
    run.write_json("cycles.json", [row])
    networks.save_state(run.state, recipe)
