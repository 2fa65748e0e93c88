"""The optimiser of both ends: AdamW under one rise and fall of the learning rate."""

from __future__ import annotations

import torch

from hovernet_cyclic.core.settings import BackEndSettings, FrontEndSettings

FIRST_SCALE = 2.0**13  # of a float16 loss: torch's own 2^16 costs the first steps of most runs


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
        """One step down the sum of the scalar `parts`. Returns their values."""
        loss = torch.stack(list(parts.values())).sum()
        self._optimiser.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._schedule.step()
        values = torch.stack([value.detach() for value in parts.values()]).tolist()  # the device is waited for once
        return dict(zip(parts, values, strict=True))
