"""The loop that both ends train in: a batch, its loss, a step, and a line of it in the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from dataloader.workers import made_ahead
from hovernet_cyclic.core.errors import TrainingError
from hovernet_cyclic.core.settings import BackEndSettings, FrontEndSettings
from hovernet_cyclic.training.optimiser import NotFiniteError, OneCycleAdamW
from hovernet_cyclic.training.run_dir import Stage
from models.together import train_together

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Lesson(Generic[BatchT]):
    """What is taught in a stage, and how.

    curves: the name of its losses in the log. network: what is trained, in place. batch: a step of the whole run -> its
    batch (this process's rows of it). loss: what stands for the network in several processes, batch -> the terms of the
    whole batch, scalars that are summed. follow: called after each step.
    """

    curves: str
    network: torch.nn.Module
    batch: Callable[[int], BatchT]
    loss: Callable[[torch.nn.Module, BatchT], dict[str, torch.Tensor]]
    follow: Callable[[], None]
    settings: FrontEndSettings | BackEndSettings


def teach(lesson: Lesson[BatchT], steps: range, stage: Stage) -> None:
    """Train for `steps` (numbers of the whole run: each draws its own batch), less those that the stage has behind it.

    Raises TrainingError where a loss or the gradient is not finite; nothing is learnt from that batch.
    """
    network = train_together(lesson.network, stage.ranks)
    half = stage.device.dtype == torch.float16
    optimiser = OneCycleAdamW(lesson.network, lesson.settings, len(steps), half)
    left = steps[stage.keeper.begin(optimiser) :]
    lesson.network.train()
    batches = made_ahead(lesson.batch, left, stage.ranks.workers)
    for step, batch in zip(left, stage.steps(batches, len(left), lesson.settings.batch_size), strict=True):
        try:
            values = optimiser.step(lesson.loss(network, batch))
        except NotFiniteError as fault:
            where = f"{stage.name}, step {step}"
            kept = stage.keeper.bad_batch(where, batch)
            cure = f"{kept}look at its images, or lower {lesson.curves}.learning_rate."
            raise TrainingError(f"{where}: {fault}: {cure}") from fault
        lesson.follow()
        stage.log.loss(lesson.curves, step, values)
        stage.keeper.stepped(lesson.curves, step)
    lesson.network.eval()
    stage.log.waited(lesson.curves, steps.stop - 1)
