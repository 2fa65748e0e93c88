"""The optimiser of both ends: AdamW under one rise and fall of the learning rate."""

from __future__ import annotations

import torch

from hovernet_cyclic.core.settings import BackEndSettings, FrontEndSettings


class OneCycleAdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019) on the one-cycle schedule (Smith & Topin, 2019) over `steps` steps."""

    def __init__(self, network: torch.nn.Module, settings: FrontEndSettings | BackEndSettings, steps: int) -> None:
        rate = settings.learning_rate
        self._optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=settings.weight_decay)
        total = max(2, steps)
        rise = 0.2 if total == 10 else 0.1  # OneCycleLR divides by zero where the rise is exactly one step
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimiser, rate, total_steps=total, pct_start=rise)

    def step(self, parts: dict[str, torch.Tensor]) -> dict[str, float]:
        """One step down the sum of the scalar `parts`. Returns their values."""
        loss = torch.stack(list(parts.values())).sum()
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self._schedule.step()
        return {key: float(value.detach()) for key, value in parts.items()}
