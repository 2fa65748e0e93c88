"""Names and writes everything in a run's folder.

LOG_DIR/
  recipe.json             the recipe, the command and the versions
  tensorboard/            loss curves
  cycle_1/, cycle_2/ ...  pseudo_masks/*.npz, gallery.png, net.tar
  cycles.json             a row a cycle: the mask-free score, kept or rolled back and why, seconds
  state.tar               where a resumed run goes on; state.previous.tar is the one before it
  net.tar                 the product: teacher weights and recipe
  bad_batch.npz           what training went astray on, if it did
  scores.json             what `evaluate` found afterwards, where there are drawn masks
"""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hovernet_cyclic import __version__
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.training.position import Unkept
from models.devices import Device
from models.ranks import ALONE, Ranks

RECIPE_FILE = "recipe.json"


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
    """What a person sees of a stage: one progress line (loss, throughput, time left), and TensorBoard curves.

    Of several processes the first alone says and writes anything.
    """

    def __init__(self, run: RunDir, quiet: bool = False, ranks: Ranks = ALONE) -> None:
        from torch.utils.tensorboard import SummaryWriter  # half a second to import: only a training run pays it

        self._writer: Any = SummaryWriter(str(run.path / "tensorboard")) if ranks.leads else NoWriter()
        self._quiet = quiet or not ranks.leads
        self._ranks = ranks
        self.losses: list[float] = []

    def stage(self, name: str, device: Device) -> Stage:
        """What a training loop is told of where it runs. name: such as 'cycle 1 back end'."""
        return Stage(name, device, self, self._ranks)

    def steps(self, items: Iterator[Any], total: int, name: str, images: int) -> Iterator[Any]:
        """Pass `items` on under a bar. name: such as 'cycle 1 back end'. images: seen per step."""
        bar = tqdm(items, total=total, desc=name, unit="step", disable=self._quiet, mininterval=1.0, dynamic_ncols=True)
        for item in bar:
            yield item
            rate = bar.format_dict.get("rate") or 0.0
            bar.set_postfix_str(f"loss {self.losses[-1]:.3f}, {rate * images:.0f} images/s", refresh=False)

    def loss(self, stage: str, step: int, parts: dict[str, float]) -> None:
        """Note the parts of the loss at a step of the whole run; their sum stands on the bar."""
        self.losses.append(sum(parts.values()))
        for name, value in parts.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def waited(self, stage: str, step: int, name: str, share: float) -> None:
        """Note which share of a stage's time the device waited for its batches. step: the stage's last."""
        self._writer.add_scalar(f"{stage}/waiting_for_data", share, step)
        self.say(f"{name}: {share:.1%} of the time was spent waiting for data")

    def say(self, line: str) -> None:
        """Print a line without tearing the bar."""
        if not self._quiet:
            tqdm.write(line)

    def flush(self) -> None:
        """Bring what was logged so far to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        self._writer.close()


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
