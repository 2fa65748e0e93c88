"""Keeps a run: its state is saved so often that whatever ends it costs minutes, and a resumed run ends the same.

state.tar holds the three networks, those of the best cycle where they differ, the optimiser with its schedule, and the
position. Batches are drawn by (seed, step), and nothing else is drawn at random once the networks are made, so there is
no generator to save. The state before it stays as state.previous.tar: neither is ever written over in place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hovernet_cyclic.core.errors import CheckpointError, DamagedCheckpointError
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import Checkpoint
from hovernet_cyclic.training.curves import forget_later
from hovernet_cyclic.training.guards import save_batch
from hovernet_cyclic.training.networks import Networks
from hovernet_cyclic.training.optimiser import OneCycleAdamW
from hovernet_cyclic.training.position import Position, Unkept
from hovernet_cyclic.training.run_dir import RunDir, StageLog
from hovernet_cyclic.training.signals import Preempted, stop_request
from models.checkpoint import load_checkpoint, save_checkpoint
from models.devices import Device
from models.ranks import Ranks

SAVE_EVERY_S = 120.0  # a preempted machine's usual notice is half a minute, a killed run's loss two
SHARE_OF_TIME = 0.01  # saves come further apart where they would take more of the time: large networks, slow disks


class Keeper(Unkept):
    """Where a run stands, and its state on disk. Every process of the run has one; the leading one alone writes."""

    def __init__(self, run: RunDir, recipe: TrainRecipe, networks: Networks, log: StageLog, ranks: Ranks) -> None:
        self.position = Position()
        # name in the log -> the first step of the whole run that is not in it
        self.curves: dict[str, float] = {"front_end": 0, "back_end": 0}
        self.networks, self.stop = networks, stop_request()
        self._run, self._recipe, self._log, self._ranks = run, recipe, log, ranks
        self._optimiser: OneCycleAdamW | None = None
        self._held: dict[str, Any] = {}  # the optimiser's state as it was read, until its stage begins
        self._sound = False  # whether state.tar is one to keep as the one before
        self._saved_at, self._cost = time.monotonic(), 0.0
        self._cycle_began, self._cycle_before = time.monotonic(), 0.0

    @classmethod
    def open(
        cls, run: RunDir, recipe: TrainRecipe, device: Device, log: StageLog, ranks: Ranks | None = None
    ) -> Keeper:
        """The keeper of a run that begins, or goes on from its state. Raises CheckpointError for one of no use."""
        ranks = ranks or Ranks()
        found = read_state(run, log.say)
        if found is None:
            return cls(run, recipe, Networks.fresh(recipe, device), log, ranks)
        path, stored = found
        keeper = cls(run, recipe, Networks.from_state(stored, path, recipe, device), log, ranks)
        keeper._go_on(stored)
        keeper._sound = path == run.state
        return keeper

    def _go_on(self, stored: Checkpoint) -> None:
        """Take up the position of a state; one of before there were any stands between two cycles."""
        self.position = Position.of(stored)
        self.curves = stored.position.get("curves", dict.fromkeys(self.curves, math.inf))
        self._cycle_before = stored.position.get("cycle_seconds", 0.0)
        self._held = stored.optimisers.get("stage", {})

    def clear_traces(self) -> None:
        """Remove what a killed run left half written, and what it logged after its last save."""
        if self._ranks.leads:
            self._run.remove_partial_files()
            forget_later(self._run.path / "tensorboard", self.curves, self.position.cycle)
        self._ranks.any(False)  # none goes on, and saves, before all have read

    @property
    def cycle_seconds(self) -> float:
        """Seconds that the cycle took so far, over all times that the run was resumed."""
        return self._cycle_before + time.monotonic() - self._cycle_began

    def begin(self, optimiser: OneCycleAdamW) -> int:
        """See Unkept."""
        self._optimiser = optimiser
        if self._held:
            optimiser.load_state_dict(self._held)
            self._held = {}
        return self.position.step

    def stepped(self, curves: str, step: int) -> None:
        """See Unkept. Saves from time to time; and where the run is asked to stop, which it then does."""
        self.position = self.position.stepped()
        self.curves[curves] = step + 1
        asked = self._ranks.any(self.stop.is_asked)
        if asked or time.monotonic() - self._saved_at >= max(SAVE_EVERY_S, self._cost / SHARE_OF_TIME):
            self.save()
        if asked:
            self._leave()

    def arrive(self, position: Position) -> None:
        """A stage is done: save, and stop where the run is asked to."""
        if position.begins_cycle:
            self._cycle_began, self._cycle_before = time.monotonic(), 0.0
        self.position, self._optimiser = position, None
        self.save()
        if self._ranks.any(self.stop.is_asked):
            self._leave()

    def redo_back_end(self, position: Position, device: Device) -> None:
        """Go back to `position`, before anything was taught in the back end of its cycle."""
        self.networks.redo_back_end(self._recipe, device)
        self.curves["back_end"] = self._recipe.back_end.steps_in(position.cycle).start
        self._held = {}
        self.position = position

    def _leave(self) -> None:
        self.stop.heed()
        raise Preempted  # another process of the run was asked

    def save(self) -> None:
        """Write the state, and keep the one before. Raises CheckpointError, with both as they were, for a full disk."""
        if not self._ranks.leads:
            return
        began = time.monotonic()
        self._log.flush()  # a curve must not lack what the state has done
        fresh = self._run.state.with_name("state.next.tar")
        save_checkpoint(fresh, self._state())
        if self._sound and self._run.state.exists():
            self._run.state.replace(self._run.previous_state)
        fresh.replace(self._run.state)
        self._sound = True
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - began

    def _state(self) -> Checkpoint:
        optimiser = {} if self._optimiser is None else {"stage": self._optimiser.state_dict()}
        place = {**self.position.to_dict(), "curves": self.curves, "cycle_seconds": self.cycle_seconds}
        return self.networks.state(self._recipe, self.position, optimisers=optimiser, position=place)

    def bad_batch(self, where: str, batch: Any) -> str:
        """See Unkept."""
        path = self._run.bad_batch(self._ranks.rank)
        save_batch(path, where, batch)
        return f"its batch lies in {path}; "


def read_state(run: RunDir, say: Callable[[str], None]) -> tuple[Path, Checkpoint] | None:
    """The state to go on from and its file: the last one, or else the one before; None for a run without any.

    Raises CheckpointError where there were states and none can be read.
    """
    damaged: list[Path] = []
    for path in (run.state, run.previous_state):
        try:
            if path.exists():
                stored = load_checkpoint(path)
                if damaged or path != run.state:
                    say(f"{run.state} is {'damaged' if damaged else 'missing'}: going on from {path.name}.")
                return path, stored
        except DamagedCheckpointError:
            damaged.append(path)
    if not damaged:
        return None
    names = " and ".join(map(str, damaged))
    raise CheckpointError(f"{names}: no state of this run is whole: copy one back, or begin in another --log_dir.")
