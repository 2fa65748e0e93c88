"""What happened in a run, in the order it happened: LOG_DIR/history.jsonl, a JSON object a line.

Each has a `kind`, and the report is drawn from them:

  start   time (seconds since 1970), command, device: a run, or a resumed one, began
  data    what is learnt from: see `count_data`
  loss    stage, curves ('front_end' or 'back_end'), step of the whole run, parts: name of a term -> its value
  stage   a stage is done: see `progress.Spent`
  labels  cycle, part, tiles, nuclei (trusted ones), taught: share of the pixels that the pseudo masks teach
  patches cycle, accuracy: balanced accuracy of the classifier on held-out patches, in [0, 1]

A run that was killed may leave a torn last line, and one that was resumed may tell a step twice: the last one counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from hovernet_cyclic.core.types import TileSource

HISTORY_FILE = "history.jsonl"

NEEDED = {
    "start": {"time", "command", "device"},
    "loss": {"curves", "step", "parts"},
    "stage": {"name", "seconds"},
}
Event = dict[str, Any]
Curves = dict[str, dict[int, Event]]  # curves -> step -> its `loss` line


class History:
    """Appends to the file of one run. A disk that refuses ends the record, and not the run: `fault` then says why.

    path: None for a process that writes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stream: TextIO | None = None
        self.fault = ""

    def add(self, kind: str, **facts: Any) -> None:
        """Append one line. facts: plain values; numbers that are not finite become null, as JSON knows none."""
        if self.fault or self._path is None:
            return
        try:
            stream = self._stream or self._open(self._path)
            stream.write(json.dumps(_plain({"kind": kind, **facts}), allow_nan=False) + "\n")
        except OSError as error:
            self.fault = f"{self._path}: cannot be written ({error.strerror}): the report will lack what comes now."

    def _open(self, path: Path) -> TextIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._stream = stream = path.open("a", encoding="utf-8", buffering=1)  # a killed process has told all
        if torn:
            stream.write("\n")
        return stream

    def close(self) -> None:
        """End the record; `add` would go on with it."""
        try:
            if self._stream is not None:
                self._stream.close()
        except OSError as error:
            self.fault = self.fault or f"{self._path}: cannot be written ({error.strerror})."
        self._stream = None


def read_history(path: Path) -> list[Event]:
    """The events of a run in order, without lines that are torn; [] where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    found = (_event(line) for line in lines)
    return [event for event in found if event is not None]


def _event(line: str) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        return None
    return event if NEEDED.get(event["kind"], set()) <= event.keys() else None


def losses_of(losses: Iterable[Event]) -> Curves:
    """`loss` lines -> curves -> step -> line, by step. Of a step that is told twice the last one counts."""
    found: Curves = {}
    for event in losses:
        found.setdefault(event["curves"], {})[event["step"]] = event
    return {curves: dict(sorted(steps.items())) for curves, steps in found.items()}


def last_of(events: Iterable[Event], kind: str) -> Event:
    """The last event of a kind; {} without one."""
    found: Event = {}
    for event in events:
        if event["kind"] == kind:
            found = event
    return found


def count_data(source: TileSource, train: Sequence[int], held: Sequence[int], drawn: Iterable[str]) -> dict[str, Any]:
    """What a run learns from, for a `data` line.

    train, held: indices of patches. drawn: tile_ids of the tiles whose drawn masks are learnt from. Returns the numbers
    of tiles, patches, positive and negative ones, groups, held-out groups and patches, and the names of drawn tiles.
    """
    positive = int(sum(source.patch_labels[i, 0] > 0 for i in (*train, *held)))
    groups = {name: {source.patch_groups[i] for i in indices} for name, indices in (("train", train), ("held", held))}
    return {
        "tiles": len(source.tile_ids),
        "patches": len(train) + len(held),
        "positive": positive,
        "negative": len(train) + len(held) - positive,
        "groups": len(groups["train"] | groups["held"]),
        "held_groups": len(groups["held"]),
        "held_patches": len(held),
        "drawn": sorted(drawn),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
