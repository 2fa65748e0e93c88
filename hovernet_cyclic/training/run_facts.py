"""What the folder of a run tells of it, read for the report. Whatever is missing or damaged there is left empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.training.history import HISTORY_FILE, Event, last_of, read_history
from hovernet_cyclic.training.run_dir import RECIPE_FILE, RunDir

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFacts:
    """One run. about: recipe.json. cycles, scored: rows of cycles.json, scored/index.json.

    losses: the `loss` lines of the history, see there. events: all others.
    """

    run: RunDir
    about: Row
    cycles: list[Row]
    scores: dict[str, Any]
    scored: list[Row]
    losses: list[Event]
    events: list[Event]

    @classmethod
    def read(cls, run: RunDir) -> RunFacts:
        """All that is there."""
        history = read_history(run.path / HISTORY_FILE)
        return cls(
            run,
            about=_mapping(_read(run, RECIPE_FILE)),
            cycles=[row for row in _rows(_read(run, "cycles.json")) if isinstance(row.get("cycle"), int)],
            scores=_mapping(_read(run, "scores.json")),
            scored=_rows(_read(run, "scored/index.json")),
            losses=[event for event in history if event["kind"] == "loss"],
            events=[event for event in history if event["kind"] != "loss"],
        )

    @property
    def recipe(self) -> Row:
        """TrainRecipe.to_dict() of the run, as far as it is known."""
        return _mapping(self.about.get("recipe"))

    @property
    def supervision(self) -> str:
        """'image_level', 'mixed' or 'masks'; '' where that is not known."""
        return str(self.recipe.get("supervision", ""))

    @property
    def data(self) -> Row:
        """The last `data` line of the history."""
        return last_of(self.events, "data")

    @property
    def stages(self) -> list[Event]:
        """The `stage` lines of the history."""
        return [event for event in self.events if event["kind"] == "stage"]

    @property
    def best(self) -> Row:
        """The row of the cycle whose network is the product so far: the last one that was kept. {} without one."""
        kept = [row for row in self.cycles if row.get("kept")]
        return kept[-1] if kept else {}

    @property
    def finished(self) -> bool:
        """Whether the product is written and no cycle that the recipe asks for is left."""
        done = max((row["cycle"] for row in self.cycles), default=0)
        return self.run.net.exists() and done >= self.asked

    @property
    def asked(self) -> int:
        """How many cycles the recipe asks for."""
        return 1 if self.supervision == "masks" else int(self.recipe.get("num_cycles", 1))

    @property
    def seconds(self) -> float:
        """Of work, without what was lost when a run was stopped."""
        spent: float = sum(row.get("seconds") or 0 for row in self.cycles)
        return spent or sum(event.get("seconds") or 0 for event in self.stages)

    def of_cycle(self, kind: str, cycle: int) -> Event:
        """The last event of a kind that tells of one cycle; {} without one."""
        return last_of((event for event in self.events if event.get("cycle") == cycle), kind)


def ranked(split: str, tiles: dict[str, dict[str, float]]) -> list[Row]:
    """Of the tiles of a split, tile_id -> scores, the best, the median and the worst by AJI, as far as they differ.

    Each: split, which ('best', 'median', 'worst', or 'only' of a single tile), tile_id, scores.
    """
    order = sorted(tiles, key=lambda tile_id: (-tiles[tile_id]["aji"], tile_id))
    if not order:
        return []
    places = (
        {"best": 0, "median": len(order) // 2, "worst": len(order) - 1} if len(order) > 2 else {"best": 0, "worst": 1}
    )
    places = {"only": 0} if len(order) == 1 else places
    return [
        {"split": split, "which": which, "tile_id": order[place], "scores": tiles[order[place]]}
        for which, place in places.items()
    ]


def _read(run: RunDir, name: str) -> Any:
    try:
        return run.read_json(name, None)
    except (RecipeError, OSError):
        return None


def _mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _rows(value: Any) -> list[Row]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
