"""The line that a person watches while a stage runs, and the one that stays when it is done.

On a terminal the line is drawn over and over; in a log file a plain line is added every LOG_SECONDS instead.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

LOG_SECONDS = 30.0
DRAW_SECONDS = 0.2
NARROWEST_BAR = 3
RECENT = 50  # steps that the loss, the rate and the time left are taken from
GIB = 2**30


@dataclass(frozen=True)
class Spent:
    """What a stage took. images: seen in all; 0 where it is not a matter of images.

    waited: seconds of `seconds` in which the next batch was not ready. loss: mean of the last RECENT steps, or None.
    memory, gpu_memory: bytes held at the most, or None where that cannot be told.
    """

    name: str
    seconds: float
    steps: int = 0
    images: int = 0
    waited: float = 0.0
    loss: float | None = None
    memory: int | None = None
    gpu_memory: int | None = None

    def facts(self) -> dict[str, Any]:
        """As a dict of plain values."""
        return {key: round(value, 3) if key in ("seconds", "waited") else value for key, value in asdict(self).items()}

    def line(self, width: int | None = None) -> str:
        """The line that stays. width: letters that it may have, by leaving out what is wanted least."""
        parts = [f"{self.steps} steps in {clock(self.seconds)}" if self.loss is not None else clock(self.seconds)]
        parts += [f"loss {self.loss:.3f}"] if self.loss is not None else []
        parts += [_rate(self.images / self.seconds)] if self.images else []
        parts += _memory_parts(self.memory, self.gpu_memory)
        parts += [f"waited {self.waited / self.seconds:.0%} for data"] if self.loss is not None else []
        room = sum(map(len, parts)) + 2 * len(parts) if width is None else width - len(self.name) - 2
        return f"{self.name}: {fitting(parts, room)}"


@dataclass
class Meter:
    """A stage under way. total: steps. images: seen per step. Times are of time.monotonic()."""

    name: str
    total: int
    images: int
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    waited: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def timed(self, items: Iterable[Any]) -> Iterator[Any]:
        """Pass `items` on, and note how long each was waited for. To be ticked after each."""
        waiting = iter(items)
        self.recent.append(time.monotonic())
        while True:
            asked = time.monotonic()
            try:
                item = next(waiting)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            yield item

    def tick(self) -> None:
        """A step is done."""
        self.done += 1
        self.recent.append(time.monotonic())

    @property
    def share(self) -> float:
        """Of the steps, how many are done, in [0, 1]."""
        return self.done / max(1, self.total)

    @property
    def waited_share(self) -> float:
        """Of the time so far, how much was spent waiting for the next item, in [0, 1]."""
        return self.waited / max(1e-9, time.monotonic() - self.began)

    def parts(self) -> list[str]:
        """What the line tells, the most wanted first."""
        pace = (self.recent[-1] - self.recent[0]) / max(1, len(self.recent) - 1)  # seconds per step
        told = [f"loss {self.loss:.3f}"] if self.loss is not None else []
        told += [_rate(self.images / pace if pace > 0 else 0.0), f"{clock(pace * (self.total - self.done))} left"]
        told += _memory_parts(memory(), gpu_memory())
        told += [f"step {self.done}/{self.total}"]
        return told + ([f"waited {self.waited_share:.0%} for data"] if self.losses else [])

    @property
    def loss(self) -> float | None:
        """Mean of the last RECENT steps; None before the first."""
        return sum(self.losses) / len(self.losses) if self.losses else None

    def spent(self) -> Spent:
        """What the stage took so far."""
        seconds = max(1e-3, time.monotonic() - self.began)
        seen = self.done * self.images
        return Spent(self.name, seconds, self.done, seen, self.waited, self.loss, most_memory(), gpu_memory())


class ProgressLine:
    """Shows a meter. quiet: show nothing."""

    def __init__(self, meter: Meter, quiet: bool) -> None:
        self._meter = meter
        self._quiet = quiet
        terminal = sys.stderr.isatty() and not quiet
        shape = {"leave": False, "dynamic_ncols": True, "bar_format": _literal(meter.name)}
        self._bar = tqdm(total=meter.total, disable=not terminal, **shape)
        self._next = time.monotonic() + (0 if terminal else LOG_SECONDS)
        self._every = DRAW_SECONDS if terminal else LOG_SECONDS

    def show(self) -> None:
        """Draw the line anew if it is time."""
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next = now + self._every
        if self._bar.disable:
            told = ", ".join([f"{self._meter.share:.0%}", *self._meter.parts()])
            print(f"{self._meter.name}: {told}", file=sys.stderr, flush=True)
            return
        self._bar.n = self._meter.done
        begin = f"{self._meter.name} {self._meter.share:4.0%} "
        width = self._bar.format_dict["ncols"] or 80
        told = fitting(self._meter.parts(), width - len(begin) - NARROWEST_BAR - len("|| "))
        self._bar.bar_format = f"{_literal(begin)}|{{bar}}| {_literal(told)}"
        self._bar.refresh()

    def close(self) -> None:
        """Take the line away."""
        self._bar.close()


def fitting(parts: list[str], room: int) -> str:
    """As many of `parts`, from the first on, as `room` letters hold, with commas."""
    told = ""
    for part in parts:
        longer = f"{told}, {part}" if told else part
        if len(longer) > room:
            break
        told = longer
    return told


def say(line: str) -> None:
    """Print a line on stdout without tearing a progress line, and at once: a log has the lines of stderr between."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def say_spent(spent: Spent) -> None:
    """Print what a stage took where its progress line was: on stderr, and on a terminal in one row."""
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
    tqdm.write(spent.line(width), file=sys.stderr)


def clock(seconds: float) -> str:
    """4.2 s, 1:23 min or 2:03:04 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d} h" if hours else f"{minutes}:{left:02d} min"


def memory() -> int | None:
    """Bytes of this process that are in memory, or None where the system does not tell."""
    try:
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return most_memory()
    import resource

    return resident * resource.getpagesize()


def most_memory() -> int | None:
    """Bytes that this process ever held, or None where the system does not tell."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def gpu_memory() -> int | None:
    """Bytes of the current GPU that torch ever held in this process, or None where it uses none."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    return int(torch.cuda.max_memory_reserved())


def _memory_parts(process: int | None, gpu: int | None) -> list[str]:
    told = [f"{process / GIB:.1f} GiB"] if process is not None else []
    return told + ([f"GPU {gpu / GIB:.1f} GiB"] if gpu is not None else [])


def _rate(rate: float) -> str:
    return f"{rate:.{0 if rate >= 10 else 1}f} images/s"


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
