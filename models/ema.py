"""The teacher: an exponential moving average of the student (mean teacher: Tarvainen & Valpola, NeurIPS 2017)."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class EmaTeacher(Generic[ModuleT]):
    """Follows a student. `module`: the averaged copy, in eval mode and without gradients.

    decay: weight of the past in each update, in [0, 1]. While young, the teacher follows faster: update number t
    (from 0) uses min(decay, (1 + t) / (10 + t)).
    """

    def __init__(self, student: ModuleT, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(student).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, student: ModuleT) -> None:
        """Move a step towards the student's parameters, and take over its buffers (BatchNorm statistics)."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = ([p.detach() for p in net.parameters()] for net in (self.module, student))
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for buffer, source in zip(self.module.buffers(), student.buffers(), strict=True):
            buffer.copy_(source)
        self.updates += 1
