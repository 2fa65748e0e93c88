"""The optimiser of both ends: AdamW under one rise and fall of the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch

from hovernet_cyclic.core.settings import BackEndSettings, FrontEndSettings

FIRST_SCALE = 2.0**13  # of a float16 loss: torch's own 2^16 costs the first steps of most runs


class NotFiniteError(ArithmeticError):
    """A loss or the gradient is nan or infinite; the weights are as they were before the step."""


class OneCycleAdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019) on the one-cycle schedule (Smith & Topin, 2019) over `steps` steps.

    half: the network computes in float16, whose small gradients would vanish: the loss is scaled up, and a step is left
    out where that was too much (Micikevicius et al., ICLR 2018).
    """

    def __init__(
        self, network: torch.nn.Module, settings: FrontEndSettings | BackEndSettings, steps: int, half: bool = False
    ) -> None:
        rate = settings.learning_rate
        kind = next(network.parameters()).device.type
        # one kernel for all parameters on a GPU; a CPU keeps the arithmetic that its runs were begun with
        fused = True if kind == "cuda" else None
        self._optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=settings.weight_decay, fused=fused)
        self._scaler = torch.amp.GradScaler(kind, init_scale=FIRST_SCALE, enabled=half)
        total = max(2, steps)
        rise = 0.2 if total == 10 else 0.1  # OneCycleLR divides by zero where the rise is exactly one step
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimiser, rate, total_steps=total, pct_start=rise)

    def step(self, parts: dict[str, torch.Tensor]) -> dict[str, float]:
        """One step down the sum of the scalar `parts`. Returns their values. Raises NotFiniteError instead."""
        loss = torch.stack(list(parts.values())).sum()
        self._optimiser.zero_grad()
        self._scaler.scale(loss).backward()
        values = torch.stack([value.detach() for value in parts.values()]).tolist()  # the device is waited for once
        found = dict(zip(parts, values, strict=True))
        self._check_finite(found)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._schedule.step()
        return found

    def _check_finite(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"the loss '{name}' is {value}")
        if self._scaler.is_enabled():  # what is too large in float16 alone, it finds, and leaves out
            return
        parameters = (parameter for group in self._optimiser.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not math.isfinite(float(torch.nn.utils.get_total_norm(gradients))):
            raise NotFiniteError("the gradient is not finite")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: the moments of each weight, and where schedule and scale of the loss stand."""
        return {
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, for the same network and number of steps."""
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        if state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
