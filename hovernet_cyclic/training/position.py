"""Where in its work a run stands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hovernet_cyclic.core.types import Checkpoint
from hovernet_cyclic.training.optimiser import OneCycleAdamW


@dataclass(frozen=True)
class Position:
    """What a run does next: a stage of a cycle (1, 2, ...), of which `step` steps are done.

    stage: 'front_end', 'pseudo_masks', 'back_end' or 'judge'. part: of the cycle's back end and of the pseudo masks
    made for it (0, 1, ...); of a run on masks, its phase. masks: what `pseudo_store.fingerprint` says of the pseudo
    masks that the back end learns from, '' before there are any.
    """

    cycle: int = 1
    stage: str = "front_end"
    part: int = 0
    step: int = 0
    masks: str = ""

    @classmethod
    def of(cls, stored: Checkpoint) -> Position:
        """The position in a state; one that has none was saved between two cycles."""
        place = {name: stored.position[name] for name in cls.__dataclass_fields__ if stored.position}
        return cls(**place) if place else cls(stored.cycle + 1)

    @property
    def begins_cycle(self) -> bool:
        """Whether nothing of the cycle is done."""
        return self == Position(self.cycle)

    def after_part(self, parts: int) -> Position:
        """What follows on one of the `parts` of a cycle's back end: wider pseudo masks, or the judgement."""
        part = self.part + 1
        return Position(self.cycle, "judge" if part == parts else "pseudo_masks", part, masks=self.masks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return dataclasses.asdict(self)

    def stepped(self) -> Position:
        """One step later."""
        return dataclasses.replace(self, step=self.step + 1)


class Unkept:
    """What becomes of the steps of a stage that belongs to no run: they are forgotten. See keeper.py for the others."""

    def begin(self, optimiser: OneCycleAdamW) -> int:
        """Begin a stage, or go on with it: `optimiser` is then brought to where it stood. Returns the steps done."""
        return 0

    def stepped(self, curves: str, step: int) -> None:
        """A step (a number of the whole run) is done, and noted in the log under `curves`."""

    def bad_batch(self, where: str, batch: Any) -> str:
        """Keep a batch on which training went astray. where: stage and step. Returns where it lies: a clause, or ''."""
        return ""
