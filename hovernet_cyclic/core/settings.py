"""Frozen recipe settings. Each dataclass checks itself; a recipe is saved inside every checkpoint it makes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hovernet_cyclic.core.errors import RecipeError

NET_MODES = ("original", "fast", "small")
SUPERVISIONS = ("image_level", "masks", "mixed")
READERS = (
    "demo",
    "folder",
    "benchmark",
    "monusac",
    "ccrcc",
    "consep",
    "kumar",
    "monuseg",
    "monusac2020",
    "pannuke",
    "npy_patches",
)
CAM_METHODS = ("evidence", "cam", "grad_cam", "layer_cam", "lrp")
TO_STUDENT = ("each", "first", "none")
POST_PROCS = ("local", "hovernet")
LARGEST_SEED = 2**32 - 1
MOST_VIEWS = 8  # ways to turn and mirror an image

SettingsT = TypeVar("SettingsT")


def _steps_in(cycle: int, first: int, later: int) -> range:
    if cycle < 2:
        return range(first if cycle == 1 else 0)
    begin = first + (cycle - 2) * later
    return range(begin, begin + later)


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
    image-level patches that is held out to judge a cycle. annotated_tiles: which training tiles are learnt from by
    their drawn masks, where `supervision` allows it: how many, first by name, or their names; None for all there are.
    """

    reader: str
    mpp: float = 0.25
    class_names: tuple[str, ...] = ("nucleus",)
    type_names: tuple[str, ...] = ()
    valid_fraction: float = 0.15
    annotated_tiles: int | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _one_of("data.reader", self.reader, READERS)
        _positive("data.mpp", self.mpp)
        _in_unit("data.valid_fraction", self.valid_fraction)
        chosen = self.annotated_tiles
        some = chosen > 0 if isinstance(chosen, int) else isinstance(chosen, tuple) and len(chosen) > 0
        _check(
            chosen is None or some,
            f"data.annotated_tiles is {chosen!r}: give a number from 1, a tuple of names, or leave it out.",
        )


@dataclass(frozen=True)
class NetSettings:
    """The back end's network. mode: see NET_MODES. nr_types: number of types with background, or None.

    smallest_um2: area below which what post_proc 'local' finds is no nucleus. pretrained: file of weights that the
    encoder of both ends starts from (see models/pretrained.py), or None.
    """

    mode: str = "small"
    nr_types: int | None = None
    post_proc: str = "local"
    smallest_um2: float = 5.0
    pretrained: str | None = None

    def __post_init__(self) -> None:
        _one_of("net.mode", self.mode, NET_MODES)
        _one_of("net.post_proc", self.post_proc, POST_PROCS)
        _check(
            self.nr_types is None or self.nr_types >= 2,
            f"net.nr_types is {self.nr_types}: give 2 or more (background is one of them), or leave it out.",
        )


@dataclass(frozen=True)
class FrontEndSettings:
    """The classifier of patches. Steps are optimiser steps; `steps_later` is for cycles after the first.

    pool_fraction: share of a positive patch's pixels, the most evident ones, that its label is asked of.
    pale_fraction: share of a positive patch's pixels, those with least haematoxylin, that are taken as background
    (nuclei take haematoxylin up: it is what the stain is for). pale_weight: weight of that term.
    """

    steps_first: int = 400
    steps_later: int = 200
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    pool_fraction: float = 0.25
    pale_fraction: float = 0.45
    pale_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("steps_first", "steps_later", "batch_size", "learning_rate", "pool_fraction"):
            _positive(f"front_end.{name}", getattr(self, name))
        _check(self.batch_size >= 2, "front_end.batch_size is 1: give 2 or more, half of them are positive.")
        _in_unit("front_end.pool_fraction", self.pool_fraction)
        _in_unit("front_end.pale_fraction", self.pale_fraction)

    def steps_in(self, cycle: int) -> range:
        """Of all steps of a run, numbered from 0, those of a cycle (1, 2, ...)."""
        return _steps_in(cycle, self.steps_first, self.steps_later)


@dataclass(frozen=True)
class CandidateSettings:
    """How nucleus candidates are cut out of a score map. Lengths in um and areas in um2, so that mpp is free.

    levels: thresholds between the two quantiles of the map. lowest_solidity: area over convex hull under which a
    region is never a nucleus. full_area_um2: area from which size no longer lowers a candidate's quality.
    seed_radii_um: of the blobs round which star-convex outlines are sought too (see star_outlines.py); empty: none are.
    """

    blur_um: float = 0.3
    levels: int = 28
    lowest_quantile: float = 0.30
    highest_quantile: float = 0.995
    min_area_um2: float = 3.2
    full_area_um2: float = 25.0
    max_area_um2: float = 112.0
    lowest_solidity: float = 0.85
    seed_radii_um: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("blur_um", "levels", "min_area_um2", "full_area_um2"):
            _positive(f"candidates.{name}", getattr(self, name))
        radii = self.seed_radii_um
        right = isinstance(radii, tuple) and all(isinstance(one, (int, float)) and 0.5 <= one <= 6.0 for one in radii)
        _check(right, f"candidates.seed_radii_um is {radii!r}: give a tuple of numbers from 0.5 to 6, or () for none.")
        ordered = 0 <= self.lowest_quantile < self.highest_quantile <= 1 and self.min_area_um2 < self.max_area_um2
        _check(ordered, "candidates: a lowest value is not below its highest: swap them.")


@dataclass(frozen=True)
class PseudoMaskSettings:
    """Activation maps to pseudo masks.

    Confidence is the share of all candidates of a cycle that are worse. Candidates above `trust_above` are taught
    (`trust_later` once a teacher has spoken too), those under `dismiss_below` are background, the rest is ignored.
    within_tile: how much a candidate is compared with those of its own tile, 0 (with those of all tiles alone) to 1.
    dark_quantile, faint_evidence: pixels darker than this quantile of the tile whose evidence (a logit) is not below
    this are ignored too, with gaps of up to twice `close_um` between them, unless within `surround_um` of a trusted
    nucleus. inset_um: how far inside of its candidate's outline a nucleus is taught to end. teacher_weight: weight of
    the teacher's logit beside haematoxylin (in standard deviations of the tile) when candidates are cut again.
    teacher_views: of how many views of a tile (turned, mirrored; 1 to 8) the teacher's opinion is the mean.
    """

    cam: str = "evidence"
    trust_above: float = 0.75
    trust_later: float = 0.60
    dismiss_below: float = 0.25
    within_tile: float = 0.0
    dark_quantile: float = 0.60
    faint_evidence: float = -1.0
    close_um: float = 1.5
    inset_um: float = 0.0
    surround_um: float = 0.75
    teacher_weight: float = 0.75
    teacher_views: int = 4

    def __post_init__(self) -> None:
        _one_of("pseudo_masks.cam", self.cam, CAM_METHODS)
        for name in ("trust_above", "trust_later", "dismiss_below", "within_tile", "dark_quantile"):
            _in_unit(f"pseudo_masks.{name}", getattr(self, name))
        views = self.teacher_views
        _check(1 <= views <= MOST_VIEWS, f"pseudo_masks.teacher_views is {views}: give 1 to {MOST_VIEWS}.")
        lowest_trust = min(self.trust_above, self.trust_later)
        _check(self.dismiss_below <= lowest_trust, "pseudo_masks.dismiss_below is above the trust: lower it.")


@dataclass(frozen=True)
class BackEndSettings:
    """Student and EMA teacher. `steps` are the optimiser steps of the first cycle, or of a run on masks;
    `steps_later` those of each later cycle, whose pseudo masks are better (None: as many). `widen_rounds` + 1 equal
    parts make a cycle.

    Between the parts the teacher widens the pseudo masks. patch_shape: (h, w) px of the network's output in training.
    negatives_per_batch: of the batch, how many are made of negative patches, on which every pixel is background.
    consistency_weight: weight of the student's squared distance to the teacher on pixels that are not trusted; 0 spares
    the teacher's look at each batch (.1 moves no score, see docs/accuracy.md).
    hv_everywhere: teach hv also on pixels that are not trusted, as far from any nucleus (to measure what that costs).
    paste_share: share of the crops on which trusted nuclei of the same tile are pasted (see dataloader/copy_paste.py),
    up to most_pasted of those ranked above paste_above, and a pale_share of them with a pale inside.
    annotated_per_batch: of the batch, how many are crops of tiles with drawn masks, in a mixed run. frozen_steps: of a
    run on masks, how many steps leave the encoder as it is, before the others.
    """

    steps: int = 600
    steps_later: int | None = None
    batch_size: int = 4
    patch_shape: tuple[int, int] = (192, 192)
    negatives_per_batch: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    ema_decay: float = 0.99
    widen_rounds: int = 0
    hv_weight: float = 2.0
    hv_everywhere: bool = False
    consistency_weight: float = 0.0
    paste_share: float = 0.9
    most_pasted: int = 24
    paste_above: float = 0.75
    pale_share: float = 0.3
    annotated_per_batch: int = 1
    frozen_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "most_pasted"):
            _positive(f"back_end.{name}", getattr(self, name))
        _positive("back_end.steps_later", self._later)
        for name in ("ema_decay", "paste_share", "paste_above", "pale_share"):
            _in_unit(f"back_end.{name}", getattr(self, name))
        _check(
            len(self.patch_shape) == 2 and min(self.patch_shape) > 0,
            f"back_end.patch_shape is {self.patch_shape}: give a height and a width in px.",
        )
        _check(
            0 <= self.widen_rounds < min(self.steps, self._later),
            f"back_end.widen_rounds is {self.widen_rounds}: give 0 or more, fewer than back_end.steps ({self.steps}) "
            f"and back_end.steps_later ({self._later}).",
        )
        _check(
            0 <= self.frozen_steps <= self.steps,
            f"back_end.frozen_steps is {self.frozen_steps}: give a number from 0 to back_end.steps ({self.steps}).",
        )
        _check(self.annotated_per_batch >= 0, "back_end.annotated_per_batch is negative: give 0 or more.")
        _check(
            0 <= self.negatives_per_batch < self.batch_size,
            f"back_end.negatives_per_batch is {self.negatives_per_batch}: leave room for tiles in the batch.",
        )

    def steps_in(self, cycle: int) -> range:
        """Of all steps of a run, numbered from 0, those of a cycle (1, 2, ...)."""
        return _steps_in(cycle, self.steps, self._later)

    @property
    def _later(self) -> int:
        return self.steps if self.steps_later is None else self.steps_later


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides a run but the folder of its data and the devices it runs on.

    to_student: in which cycles the student is handed the classifier's encoder, see TO_STUDENT. to_classifier: whether
    the classifier is handed the teacher's at the end of a cycle. Both make the round trip of the paper.
    supervision: 'image_level', 'mixed' (and a few tiles with drawn masks), or 'masks' (these alone: one cycle, and no
    front end).
    """

    name: str
    data: DataSettings
    supervision: str = "image_level"
    front_end: FrontEndSettings = field(default_factory=FrontEndSettings)
    candidates: CandidateSettings = field(default_factory=CandidateSettings)
    pseudo_masks: PseudoMaskSettings = field(default_factory=PseudoMaskSettings)
    back_end: BackEndSettings = field(default_factory=BackEndSettings)
    net: NetSettings = field(default_factory=NetSettings)
    num_cycles: int = 2
    to_student: str = "each"
    to_classifier: bool = True
    seed: int = 10
    log_dir: str = "logs"

    def __post_init__(self) -> None:
        _one_of("supervision", self.supervision, SUPERVISIONS)
        _one_of("to_student", self.to_student, TO_STUDENT)
        _positive("num_cycles", self.num_cycles)
        _check(0 <= self.seed <= LARGEST_SEED, f"seed is {self.seed}: give a whole number from 0 to 2^32 - 1.")
        if self.supervision != "image_level":
            self._check_types()
        if self.supervision == "mixed":
            self._check_mixed()

    def _check_types(self) -> None:
        named, known = len(self.data.type_names), self.net.nr_types
        _check(
            named == 0 or known in (None, named),
            f"net.nr_types is {known} but data.type_names names {named}, background included: make them agree.",
        )

    def _check_mixed(self) -> None:
        back_end = self.back_end
        _check(
            self.data.annotated_tiles is not None,
            "supervision is 'mixed' but data.annotated_tiles is left out: say which tiles have drawn masks.",
        )
        _check(
            0 < back_end.annotated_per_batch <= back_end.batch_size - back_end.negatives_per_batch,
            f"back_end.annotated_per_batch is {back_end.annotated_per_batch}: a mixed run takes 1 or more, as many as "
            "back_end.batch_size leaves beside back_end.negatives_per_batch.",
        )

    @property
    def smallest_area(self) -> int:
        """Area of the smallest nucleus (net.smallest_um2), px at the recipe's mpp."""
        return round(self.net.smallest_um2 / self.data.mpp**2)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (dict, list, str, numbers, None): what a checkpoint stores."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainRecipe:
        """The recipe that `to_dict` described. Raises RecipeError for unknown or missing names."""
        parts = {
            "data": DataSettings,
            "front_end": FrontEndSettings,
            "candidates": CandidateSettings,
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
    try:
        return cls(**{key: tuple(item) if isinstance(item, list) else item for key, item in values.items()})
    except (AttributeError, TypeError) as error:
        raise RecipeError(
            f"The recipe in this checkpoint does not fit this version ({error}): train it again."
        ) from error
