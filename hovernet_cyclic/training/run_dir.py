"""Names and writes everything in a run's folder.

LOG_DIR/
  report.html             all that follows in one page to look at, made anew after each cycle
  recipe.json             the recipe, the command and the versions
  history.jsonl           losses, stages and counts as they came, a line each (see history.py)
  tensorboard/            loss curves, pictures and scores of each cycle
  cycle_1/, cycle_2/ ...  pseudo_masks/*.npz, gallery.png and its gallery.json, net.tar
  cycles.json             a row a cycle: the mask-free score, kept or rolled back and why, seconds
  state.tar               where a resumed run goes on; state.previous.tar is the one before it
  net.tar                 the product: teacher weights and recipe
  bad_batch.npz           what training went astray on, if it did
  scores.json             what `evaluate` found afterwards, where there are drawn masks
  scored/                 the best, the median and the worst tile of each split, with index.json
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hovernet_cyclic import __version__
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import UInt8Array
from hovernet_cyclic.training.devices import describe_device
from hovernet_cyclic.training.history import HISTORY_FILE, History
from hovernet_cyclic.training.position import Unkept
from hovernet_cyclic.training.progress import Meter, ProgressLine, say, say_spent
from models.devices import Device
from models.ranks import ALONE, Ranks

RECIPE_FILE = "recipe.json"
SHOWN_SECONDS = 1.0  # a part that took less is not worth a line


class RunDir:
    """The folder of one run. Files are written under a temporary name and renamed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path, resume: bool) -> RunDir:
        """Make the folder, or find the run to resume. Raises RecipeError as `find` does."""
        run = cls.find(path, resume)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"{run.path}: cannot be made ({error.strerror}): give another --log_dir.") from error
        return run

    @classmethod
    def find(cls, path: str | Path, resume: bool) -> RunDir:
        """The folder, which need not exist yet, and is not made: bad data then leaves nothing behind.

        Raises RecipeError where it is a file, holds a run though `resume` is not given, or holds none to resume.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise RecipeError(f"{run.path}: this is a file: give a folder as --log_dir.")
        # a run that was stopped in its first cycle has a recipe but no state yet: it is begun again
        if resume and not (run.has_state or (run.path / RECIPE_FILE).exists()):
            raise RecipeError(f"{run.path}: there is no run to resume here: leave --resume out to start one.")
        if not resume and run.path.exists() and any(run.path.iterdir()):
            raise RecipeError(f"{run.path}: this folder is not empty: give --resume or another --log_dir.")
        return run

    @property
    def state(self) -> Path:
        """The checkpoint that a resumed run goes on from."""
        return self.path / "state.tar"

    @property
    def previous_state(self) -> Path:
        """The state before `state`, for where that one is damaged."""
        return self.path / "state.previous.tar"

    @property
    def has_state(self) -> bool:
        """Whether a resumed run has a state to go on from."""
        return self.state.exists() or self.previous_state.exists()

    def bad_batch(self, rank: int) -> Path:
        """Where a process of the run leaves the batch that it went astray on."""
        return self.path / f"bad_batch{rank or ''}.npz"

    def remove_partial_files(self) -> None:
        """Remove what was half written when the run was killed."""
        for pattern in ("*.partial", ".*.tmp", "state.next.tar"):
            for path in self.path.rglob(pattern):
                path.unlink(missing_ok=True)

    @property
    def net(self) -> Path:
        """The product."""
        return self.path / "net.tar"

    def cycle(self, cycle: int) -> Path:
        """The folder of one cycle (1, 2, ...), made if missing."""
        folder = self.path / f"cycle_{cycle}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def pseudo_masks(self, cycle: int) -> Path:
        """The folder of the pseudo masks of one cycle."""
        return self.cycle(cycle) / "pseudo_masks"

    def cycle_nets(self) -> list[tuple[int, Path]]:
        """(cycle, net.tar) of the cycles that are done, in order."""
        found = ((int(path.parent.name.split("_")[1]), path) for path in self.path.glob("cycle_*/net.tar"))
        return sorted(found)

    def write_json(self, name: str, value: Any) -> Path:
        """Write LOG_DIR/<name>. Numbers that are nan become null, as JSON knows no nan."""
        path = self.path / name
        partial = path.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)  # left behind by a full disk, it would make the folder no one's
        return path

    def read_json(self, name: str, default: Any) -> Any:
        """What LOG_DIR/<name> holds, or `default` where it is missing. Raises RecipeError for a damaged file."""
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default
        except ValueError as error:
            raise RecipeError(f"{path}: this is no JSON any more: give another --log_dir and start again.") from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def is_same_run(begun: dict[str, Any], recipe: TrainRecipe) -> bool:
    """Whether `recipe` goes on with the run that was begun by TrainRecipe.to_dict() `begun`.

    The number of cycles may differ, so that a finished run can be given more, and the folder may have been moved.
    Settings that `begun` does not know yet count as their defaults. Raises RecipeError for one that it alone knows.
    """
    free = {"num_cycles": recipe.num_cycles, "log_dir": recipe.log_dir}
    return TrainRecipe.from_dict({**begun, **free}) == recipe


def describe_run(run: RunDir, recipe: TrainRecipe, data_dir: str) -> None:
    """Write recipe.json: what is needed to do the run again. Raises RecipeError where it holds another recipe's run."""
    begun = run.read_json(RECIPE_FILE, None)
    if begun is not None and not is_same_run(begun["recipe"], recipe):
        raise RecipeError(f"{run.path}: this run was begun with another recipe: resume it with that one.")
    packages = ("torch", "numpy", "scipy", "scikit-image", "opencv-python", "imgaug")
    run.write_json(
        RECIPE_FILE,
        {
            "recipe": recipe.to_dict(),
            "command": sys.argv,
            "data_dir": data_dir,
            "versions": {
                "hovernet_cyclic": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
        },
    )


class StageLog:
    """What a person sees of a run: a progress line a stage, TensorBoard, and the history that the report is made of.

    Of several processes the first alone says and writes anything.
    """

    def __init__(self, run: RunDir, quiet: bool = False, ranks: Ranks = ALONE) -> None:
        from torch.utils.tensorboard import SummaryWriter  # half a second to import: only a training run pays it

        self._writer: Any = SummaryWriter(str(run.path / "tensorboard")) if ranks.leads else NoWriter()
        self._history = History(run.path / HISTORY_FILE if ranks.leads else None)
        self._quiet = quiet or not ranks.leads
        self._ranks = ranks
        self._part: Meter | None = None
        self._meter: Meter | None = None
        self.losses: list[float] = []

    def stage(self, name: str, device: Device) -> Stage:
        """What a training loop is told of where it runs. name: such as 'cycle 1 back end'."""
        return Stage(name, device, self, self._ranks)

    def begin(self, name: str) -> None:
        """A part of the run begins that has no steps to show; it lasts until the next part or stage does."""
        self._end_part()
        self._part = Meter(name, total=0, images=0)

    def steps(self, items: Iterable[Any], total: int, name: str, images: int) -> Iterator[Any]:
        """Pass `items` on under a progress line. name: such as 'cycle 1 back end'. images: seen per step."""
        self._end_part()
        self._meter = meter = Meter(name, total, images)
        line = ProgressLine(meter, self._quiet)
        try:
            for item in meter.timed(items):
                yield item
                meter.tick()
                line.show()
        except GeneratorExit:  # it was stopped on the way: the time was spent all the same
            self._history.add("stage", **meter.spent().facts())
            raise
        finally:
            line.close()
        self._end(meter)

    def loss(self, stage: str, step: int, parts: dict[str, float]) -> None:
        """Note the parts of the loss at a step of the whole run; their sum stands on the progress line."""
        self.losses.append(sum(parts.values()))
        if self._meter is not None:
            self._meter.losses.append(self.losses[-1])
        self._history.add(
            "loss", stage=self._meter.name if self._meter else stage, curves=stage, step=step, parts=parts
        )
        for name, value in parts.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def waited(self, stage: str, step: int) -> None:
        """Give TensorBoard the share of the last stage's time that its batches were waited for. step: its last."""
        if self._meter is not None:
            self._writer.add_scalar(f"{stage}/waiting_for_data", self._meter.waited_share, step)

    def note(self, kind: str, **facts: Any) -> None:
        """Add a line to the history, see there."""
        self._history.add(kind, **facts)

    def open(self, run: RunDir, device: Device) -> None:
        """A run begins, or goes on: note it, and give TensorBoard its recipe, command and versions as text."""
        several = f", {self._ranks.count} processes" if self._ranks.count > 1 else ""
        self._history.add("start", time=round(time.time()), command=sys.argv, device=describe_device(device) + several)
        for name, value in run.read_json(RECIPE_FILE, {}).items():
            text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
            self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()))

    def picture(self, cycle: int, page: UInt8Array) -> None:
        """Give TensorBoard the sheet of a cycle, uint8 (H, W, 3)."""
        self._writer.add_image("cycle/image, evidence, pseudo mask, teacher", page, cycle, dataformats="HWC")

    def scores(self, cycle: int, row: dict[str, Any]) -> None:
        """A cycle is done: give TensorBoard the numbers of its row of cycles.json."""
        self._end_part()
        for name, value in row.items():
            if isinstance(value, (bool, int, float)) and name != "cycle":
                self._writer.add_scalar(f"cycle/{name}", float(value), cycle)

    def say(self, line: str) -> None:
        """Print a line without tearing the progress line."""
        if not self._quiet:
            say(line)

    def flush(self) -> None:
        """Bring what was logged so far to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is still held back."""
        self._end_part()
        self._history.close()
        self._writer.close()

    def _end_part(self) -> None:
        if self._part is not None:
            self._end(self._part)
        self._part = None

    def _end(self, meter: Meter) -> None:
        spent = meter.spent()
        self._history.add("stage", **spent.facts())
        if self._history.fault:
            self.say(self._history.fault)
        if not self._quiet and (spent.steps or spent.seconds >= SHOWN_SECONDS):
            say_spent(spent)


class NoWriter:
    """Stands for a SummaryWriter in a process that writes nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@dataclass(frozen=True)
class Stage:
    """Where a training loop runs and whom it reports to."""

    name: str
    device: Device
    log: StageLog
    ranks: Ranks = ALONE
    keeper: Unkept = field(default_factory=Unkept)

    def steps(self, items: Iterator[Any], total: int, images: int) -> Iterator[Any]:
        """Pass `items` on under this stage's bar. images: seen per step."""
        return self.log.steps(items, total, self.name, images)
