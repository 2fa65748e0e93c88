"""The processes that train one network together, each on its share of every batch (its rank: 0, 1, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is. Alone, there is nothing to exchange."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.rank == 0

    def own(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """This process's share of what all have in the same order."""
        return items[self.rank :: self.count]

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of the processes at least; all must ask together."""
        return flag
