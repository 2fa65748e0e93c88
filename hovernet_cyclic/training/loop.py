"""The loop that both ends train in: a batch, its loss, a step, and a line of it in the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from dataloader.train_loader import prefetch
from hovernet_cyclic.core.settings import BackEndSettings, FrontEndSettings
from hovernet_cyclic.training.optimiser import OneCycleAdamW
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
    """Train for `steps` (numbers of the whole run: each draws its own batch)."""
    network = train_together(lesson.network, stage.ranks)
    optimiser = OneCycleAdamW(lesson.network, lesson.settings, len(steps))
    lesson.network.train()
    batches = prefetch(lesson.batch, steps)
    for step, batch in zip(steps, stage.steps(batches, len(steps), lesson.settings.batch_size), strict=True):
        values = optimiser.step(lesson.loss(network, batch))
        lesson.follow()
        stage.log.loss(lesson.curves, step, values)
    lesson.network.eval()
