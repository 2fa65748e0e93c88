"""The three networks of a run, their best state so far, and how they are saved and restored."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hovernet_cyclic.core.errors import CheckpointError
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import Checkpoint
from hovernet_cyclic.training.devices import seed_everything
from hovernet_cyclic.training.position import Position
from hovernet_cyclic.training.run_dir import is_same_run
from infer.base import NetworkSegmenter
from models.checkpoint import FORMAT_VERSION, load_checkpoint, save_checkpoint
from models.classifier.net_desc import Classifier
from models.devices import Device
from models.ema import EmaTeacher
from models.hovernet.net_desc import HoVerNet
from models.pretrained import load_decoders, load_pretrained, read_pretrained

CLEARLY_WORSE = 0.1  # of the best score: from there on a cycle failed; less says nothing, see docs/accuracy.md
Weights = dict[str, dict[str, torch.Tensor]]


@dataclass
class Networks:
    """Classifier, student and teacher; `best` holds their weights at the last cycle that was kept.

    best_cycle: that cycle. best_score: the highest score of a cycle so far.
    steps_done: of a run on masks, the steps of the student so far. updates_before: the teacher's when the cycle began.
    """

    classifier: Classifier
    student: HoVerNet
    teacher: EmaTeacher[HoVerNet]
    cycles_done: int = 0
    best_cycle: int = 0
    best_score: float = -math.inf
    best: Weights | None = None
    steps_done: int = 0
    updates_before: int = 0

    @classmethod
    def fresh(cls, recipe: TrainRecipe, device: Device) -> Networks:
        """Networks with random weights, or what the recipe's file has of theirs. Raises CheckpointError for a bad one.

        An image-level run takes encoders alone: the decoders of a HoVer-Net were taught by drawn masks.
        """
        networks = cls._random(recipe, device)
        if recipe.net.pretrained is not None:
            pretrained = read_pretrained(recipe.net.pretrained, recipe.net.mode)
            for network in (networks.classifier, networks.student, networks.teacher.module):
                load_pretrained(network, pretrained)
            if recipe.supervision != "image_level":
                for network in (networks.student, networks.teacher.module):
                    load_decoders(network, pretrained)
        return networks

    @classmethod
    def _random(cls, recipe: TrainRecipe, device: Device) -> Networks:
        classifier = device.place(Classifier(recipe.net.mode, len(recipe.data.class_names)))
        student = device.place(HoVerNet(recipe.net.mode, recipe.net.nr_types))
        return cls(classifier, student, EmaTeacher(student, recipe.back_end.ema_decay))

    @classmethod
    def restore(cls, path: Path, recipe: TrainRecipe, device: Device) -> Networks:
        """The networks as they were saved in `path`. Raises CheckpointError where the recipe is another one."""
        return cls.from_state(load_checkpoint(path), path, recipe, device)

    @classmethod
    def from_state(cls, stored: Checkpoint, path: Path, recipe: TrainRecipe, device: Device) -> Networks:
        """The networks of a state that was read from `path`. Raises CheckpointError where the recipe is another one."""
        if not is_same_run(stored.recipe, recipe):
            raise CheckpointError(f"{path}: this run was begun with another recipe: resume it with that one.")
        networks = cls._random(recipe, device)
        networks._load({"classifier": stored.classifier, "student": stored.student, "teacher": stored.teacher})
        networks.cycles_done, networks.steps_done = stored.cycle, stored.step
        networks.teacher.updates = stored.rng.get("teacher_updates", 0)
        networks.updates_before = stored.rng.get("updates_before", networks.teacher.updates)
        networks.best_cycle, networks.best_score = stored.rng["best_cycle"], stored.rng["best_score"]
        if stored.best:
            networks.best = stored.best
        elif networks.best_cycle and Position.of(stored).begins_cycle:
            networks.best = networks._weights()
        return networks

    def keep_or_roll_back(self, cycle: int, score: float) -> tuple[bool, str]:
        """Note that `cycle` is done. Returns whether it was kept, and the reason in words.

        score: see PatchScore.surplus; nan where there was nothing to judge by: then the cycle is kept.
        """
        self._end_cycle(cycle)
        if self.best is None or not score < self.best_score - CLEARLY_WORSE * abs(
            self.best_score
        ):  # nan is never below
            before = f" (best so far: {self.best_score:.0f})" if self.best is not None else ""
            self.best_cycle, self.best_score = cycle, max(score, self.best_score)
            self.best = self._weights()
            if math.isnan(score):
                return True, "kept: there are no held-out patches of both labels to judge it by"
            return True, f"kept: {score:.0f} nuclei per mm2 more in positive held-out patches than in negative{before}"
        self._load(self.best)
        below = f"a surplus of {score:.0f} nuclei per mm2 is clearly below {self.best_score:.0f}"
        return False, f"rolled back to cycle {self.best_cycle}: {below}"

    def roll_back(self, cycle: int) -> None:
        """Note that `cycle` is done, and failed: go back to the best one."""
        assert self.best is not None, "there is no cycle to go back to"
        self._end_cycle(cycle)
        self._load(self.best)

    def _end_cycle(self, cycle: int) -> None:
        self.cycles_done, self.updates_before = cycle, self.teacher.updates

    def redo_back_end(self, recipe: TrainRecipe, device: Device) -> None:
        """Bring student and teacher back to where the cycle began; the classifier has learnt since, and stays."""
        if self.best is None:
            seed_everything(recipe.seed)
            begun = Networks.fresh(recipe, device)._weights()
        else:
            begun = self.best
        self.student.load_state_dict(begun["student"])
        self.teacher.module.load_state_dict(begun["teacher"])
        self.teacher.updates = self.updates_before

    def segmenter(self, recipe: TrainRecipe, device: Device) -> NetworkSegmenter:
        """The teacher behind a lattice of patches."""
        return NetworkSegmenter(self.teacher.module, recipe.net.mode, device.torch_device, dtype=device.dtype)

    def save_net(self, path: Path, recipe: TrainRecipe) -> None:
        """Write what inference needs: the teacher and its recipe."""
        save_checkpoint(path, self._checkpoint(recipe, "done", teacher=_on_cpu(self.teacher.module.state_dict())))

    def save_state(self, path: Path, recipe: TrainRecipe) -> None:
        """Write what a run needs that is resumed between two cycles."""
        save_checkpoint(path, self.state(recipe, Position(self.cycles_done + 1)))

    def state(self, recipe: TrainRecipe, at: Position, **entries: Any) -> Checkpoint:
        """What a run needs that is resumed there. entries: further ones of the Checkpoint."""
        weights = {name: _on_cpu(values) for name, values in self._weights().items()}
        if self.best is not None and not at.begins_cycle:
            entries["best"] = {name: _on_cpu(values) for name, values in self.best.items()}
        return self._checkpoint(recipe, at.stage, **weights, **entries)

    def _checkpoint(self, recipe: TrainRecipe, stage: str, **entries: Any) -> Checkpoint:
        state = {
            "best_cycle": self.best_cycle,
            "best_score": self.best_score,
            "teacher_updates": self.teacher.updates,  # a teacher that has seen many follows slower
            "updates_before": self.updates_before,
        }
        return Checkpoint(
            FORMAT_VERSION, recipe.to_dict(), self.cycles_done, stage, self.steps_done, rng=state, **entries
        )

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"classifier": self.classifier, "student": self.student, "teacher": self.teacher.module}

    def _weights(self) -> Weights:
        return {name: copy.deepcopy(module.state_dict()) for name, module in self._modules().items()}

    def _load(self, weights: dict[str, Any]) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(weights[name])


def _on_cpu(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu() for name, value in weights.items()}
