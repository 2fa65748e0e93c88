"""The processes that train one network together, each on its share of every batch (its rank: 0, 1, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from joblib import cpu_count
from torch import Tensor

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is. Alone, there is nothing to exchange.

    here: how many of them run on this machine. workers: processes that prepare the batches of this one, 0 for a thread.
    What says "together" must be called by all of them, in the same order.
    """

    rank: int = 0
    count: int = 1
    here: int = 1
    workers: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """This process's share of the machine's cores, at least one."""
        return max(1, int(cpu_count()) // self.here)

    def own(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """This process's share of what all have in the same order."""
        return items[self.rank :: self.count]

    def gather(self, share: Sequence[ItemT]) -> list[ItemT]:
        """What all made of their `own` items, in the order of the whole; together."""
        if self.count == 1:
            return list(share)
        shares: list[Any] = [None] * self.count
        dist.all_gather_object(shares, list(share))
        return deal_back(shares)

    def gather_to_lead(self, share: Sequence[ItemT]) -> list[ItemT]:
        """As `gather`, for rank 0 alone: the others are answered []; together."""
        if self.count == 1:
            return list(share)
        shares: list[Any] | None = [None] * self.count if self.leads else None
        dist.gather_object(list(share), shares)
        return deal_back(shares or [])

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of the processes at least; together."""
        if self.count == 1:
            return flag
        told = torch.tensor([int(flag)])
        dist.all_reduce(told)
        return bool(told.item())

    def wait(self) -> None:
        """Go on once all have come here; together."""
        self.any(False)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of float `values` over the processes, with its gradient; together.

        A loss made of such sums is the same number in every process, and its gradient in each is `count` times this
        process's share of the whole: their mean, as DistributedDataParallel makes it, is the gradient of the whole.
        """
        if self.count == 1:
            return values
        summed: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
        return summed

    def ratio(self, total: Tensor, number: Tensor) -> Tensor:
        """Sum of the scalars `total` over the sum of the counts `number`, 0 where nothing is counted; together."""
        if self.count == 1:
            return total / number.clamp(min=1)
        total, number = self.sum(torch.stack([total, number.to(total.dtype)])).unbind()
        return total / number.clamp(min=1)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of all float values of all processes, 0 where there are none; together."""
        return self.ratio(values.sum(), torch.tensor(values.numel(), device=values.device))


ALONE = Ranks()


def deal_back(shares: list[Any]) -> list[Any]:
    """The whole of which `own` dealt the shares, in the order of the ranks."""
    whole: list[Any] = [None] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole


class _Sum(torch.autograd.Function):
    """Sum over the processes; the gradient of a sum is that of all who took part."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed
