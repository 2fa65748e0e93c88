"""Frozen recipe settings. Each dataclass checks itself; a recipe is saved inside every checkpoint it makes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hovernet_cyclic.core.errors import RecipeError

NET_MODES = ("original", "fast", "small")
SUPERVISIONS = ("image_level", "masks", "mixed")
READERS = ("demo", "folder", "benchmark")
CAM_METHODS = ("evidence", "cam", "grad_cam", "layer_cam", "lrp")
POST_PROCS = ("local", "hovernet")

SettingsT = TypeVar("SettingsT")


def _check(condition: bool, sentence: str) -> None:
    if not condition:
        raise RecipeError(sentence)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _check(value in allowed, f"{name} is '{value}': use one of {', '.join(allowed)}.")


def _in_unit(name: str, value: float) -> None:
    _check(0.0 <= value <= 1.0, f"{name} is {value}: give a number from 0 to 1.")


def _positive(name: str, value: float) -> None:
    _check(value > 0, f"{name} is {value}: give a number above 0.")


@dataclass(frozen=True)
class DataSettings:
    """Which reader opens `--data_dir`, and the scale of its images.

    mpp: micrometres per pixel of images, patches and network. class_names: the C image-level classes. type_names:
    nucleus types, index 0 is background; empty where the data has none. valid_fraction: share of the groups of
    image-level patches that is held out to judge a cycle.
    """

    reader: str
    mpp: float = 0.25
    class_names: tuple[str, ...] = ("nucleus",)
    type_names: tuple[str, ...] = ()
    valid_fraction: float = 0.15

    def __post_init__(self) -> None:
        _one_of("data.reader", self.reader, READERS)
        _positive("data.mpp", self.mpp)
        _in_unit("data.valid_fraction", self.valid_fraction)


@dataclass(frozen=True)
class NetSettings:
    """The back end's network. mode: see NET_MODES. nr_types: number of types with background, or None."""

    mode: str = "small"
    nr_types: int | None = None
    post_proc: str = "local"

    def __post_init__(self) -> None:
        _one_of("net.mode", self.mode, NET_MODES)
        _one_of("net.post_proc", self.post_proc, POST_PROCS)
        _check(
            self.nr_types is None or self.nr_types >= 2,
            f"net.nr_types is {self.nr_types}: give 2 or more (background is one of them), or leave it out.",
        )


@dataclass(frozen=True)
class FrontEndSettings:
    """The classifier of patches. Steps are optimiser steps; `steps_later` is for cycles after the first."""

    steps_first: int = 600
    steps_later: int = 300
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("steps_first", "steps_later", "batch_size", "learning_rate"):
            _positive(f"front_end.{name}", getattr(self, name))


@dataclass(frozen=True)
class PseudoMaskSettings:
    """Activation maps to pseudo masks."""

    cam: str = "evidence"

    def __post_init__(self) -> None:
        _one_of("pseudo_masks.cam", self.cam, CAM_METHODS)


@dataclass(frozen=True)
class BackEndSettings:
    """Student and EMA teacher. Steps are optimiser steps of one cycle."""

    steps: int = 800
    batch_size: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            _positive(f"back_end.{name}", getattr(self, name))
        _in_unit("back_end.ema_decay", self.ema_decay)


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides a run but the folder of its data and the devices it runs on."""

    name: str
    data: DataSettings
    supervision: str = "image_level"
    front_end: FrontEndSettings = field(default_factory=FrontEndSettings)
    pseudo_masks: PseudoMaskSettings = field(default_factory=PseudoMaskSettings)
    back_end: BackEndSettings = field(default_factory=BackEndSettings)
    net: NetSettings = field(default_factory=NetSettings)
    num_cycles: int = 2
    seed: int = 10
    log_dir: str = "logs"

    def __post_init__(self) -> None:
        _one_of("supervision", self.supervision, SUPERVISIONS)
        _positive("num_cycles", self.num_cycles)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (dict, list, str, numbers, None): what a checkpoint stores."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainRecipe:
        """The recipe that `to_dict` described. Raises RecipeError for unknown or missing names."""
        parts = {
            "data": DataSettings,
            "front_end": FrontEndSettings,
            "pseudo_masks": PseudoMaskSettings,
            "back_end": BackEndSettings,
            "net": NetSettings,
        }
        rebuilt = {name: _build(parts[name], value) if name in parts else value for name, value in values.items()}
        return _build(cls, rebuilt)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _build(cls: type[SettingsT], values: dict[str, Any]) -> SettingsT:
    frozen = {key: tuple(item) if isinstance(item, list) else item for key, item in values.items()}
    try:
        return cls(**frozen)
    except TypeError as error:
        raise RecipeError(f"The recipe in this checkpoint does not fit this version ({error}): train it again.") from error
