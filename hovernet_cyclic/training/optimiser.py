"""The optimiser of both ends: AdamW under one rise and fall of the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch

from hovernet_cyclic.core.settings import BackEndSettings, FrontEndSettings


class NotFiniteError(ArithmeticError):
    """A loss or the gradient is nan or infinite; the weights are as they were before the step."""


class OneCycleAdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019) on the one-cycle schedule (Smith & Topin, 2019) over `steps` steps."""

    def __init__(self, network: torch.nn.Module, settings: FrontEndSettings | BackEndSettings, steps: int) -> None:
        rate = settings.learning_rate
        self._optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=settings.weight_decay)
        total = max(2, steps)
        rise = 0.2 if total == 10 else 0.1  # OneCycleLR divides by zero where the rise is exactly one step
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimiser, rate, total_steps=total, pct_start=rise)

    def step(self, parts: dict[str, torch.Tensor]) -> dict[str, float]:
        """One step down the sum of the scalar `parts`. Returns their values. Raises NotFiniteError instead."""
        loss = torch.stack(list(parts.values())).sum()
        self._optimiser.zero_grad()
        loss.backward()
        values = {key: float(value.detach()) for key, value in parts.items()}
        self._check_finite(values)
        self._optimiser.step()
        self._schedule.step()
        return values

    def _check_finite(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"the loss '{name}' is {value}")
        parameters = (parameter for group in self._optimiser.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not math.isfinite(float(torch.nn.utils.get_total_norm(gradients))):
            raise NotFiniteError("the gradient is not finite")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: the moments of each weight, and where the schedule stands."""
        return {"optimiser": self._optimiser.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, for the same network and number of steps."""
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
