"""The sections of a run's report that show pictures: the gallery of each cycle, and tiles with their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import cv2
import numpy as np

from dataloader.images import read_rgb
from hovernet_cyclic.core.errors import DatasetError, RecipeError
from hovernet_cyclic.core.types import UInt8Array
from hovernet_cyclic.training.report_page import Child, node, picture, pictures, size_of, table
from hovernet_cyclic.training.run_facts import Row, RunFacts, ranked

GALLERY_LETTERS, SCORED_LETTERS = 5_000_000, 2_000_000  # of all pictures of a section together
MOST_GALLERIES = 24
WIDEST_SHEET = 1000  # px
GALLERY = (
    "Image",
    "Evidence (bright: nucleus)",
    "Pseudo mask (green: taught; grey: not trusted)",
    "Teacher (green: segmented)",
)
SCORED = ("Image", "Drawn mask (blue: missed)", "Network (red: not drawn)")
SCORES = ("dice", "aji", "aji_plus", "dq", "sq", "pq", "f1d")
RANKS = {"best": "the best tile", "median": "the median tile", "worst": "the worst tile", "only": "the only tile"}
GALLERY_WORDS = (
    ("Image", "the middle of a tile."),
    ("Evidence", "where the classifier sees nuclei: black is none, bright is sure."),
    ("Pseudo mask", "what is taught: nuclei outlined in green. What is greyed is not trusted and teaches nothing."),
    ("Teacher", "what the network of this cycle segments, outlined in green."),
)


def gallery_section(facts: RunFacts) -> list[Element]:
    """What each cycle saw, believed and learnt, for a few tiles; the product's cycle is open."""
    rows = {row["cycle"]: row for row in facts.cycles}
    there = [rows.get(cycle, {"cycle": cycle, "reason": "not finished"}) for cycle in _drawn_cycles(facts)]
    shown = [row for row in there if row is facts.best or row in there[-MOST_GALLERIES:]]
    if not shown:
        return []
    words = [node("p", node("strong", name), f": {text}") for name, text in GALLERY_WORDS]
    budget = GALLERY_LETTERS // len(shown)
    cycles = [_cycle(facts, row, budget) for row in shown]
    left = [node("p", f"Only {len(shown)} of {len(there)} cycles are shown.")] if len(there) > len(shown) else []
    return [node("h2", "What each cycle saw, believed and learnt"), *words, *left, *cycles]


def _drawn_cycles(facts: RunFacts) -> list[int]:
    """The cycles that left a sheet, whether they came to their end or not."""
    folders = (path.parent.name.removeprefix("cycle_") for path in facts.run.path.glob("cycle_*/gallery.png"))
    return sorted(int(number) for number in folders if number.isdecimal())


def _cycle(facts: RunFacts, row: Row, budget: int) -> Element:
    cycle = row["cycle"]
    name = f"cycle_{cycle}/gallery.png"
    rows = _within(_rows_of(facts, name, _index(facts, f"cycle_{cycle}/gallery.json"), GALLERY), budget)
    summary = node("summary", node("strong", f"Cycle {cycle}"), f", {row.get('reason', '')}")
    body = rows or [node("p", f"{name} cannot be read.")]
    return node("details", summary, body, **({"open": "open"} if row is facts.best else {}))


def _index(facts: RunFacts, name: str) -> list[Row]:
    try:
        index = facts.run.read_json(name, [])
    except (RecipeError, OSError):
        index = []
    return [row for row in index if isinstance(row, dict)] if isinstance(index, list) else []


def _rows_of(facts: RunFacts, name: str, index: Sequence[Row], columns: Sequence[str]) -> Iterator[Element]:
    """The pictures of a sheet, a row a tile; the whole sheet where it is not known what lies where."""
    try:
        page = read_rgb(facts.run.path / name)
    except DatasetError:
        return
    if not index:
        yield picture(_narrowed(page), " | ".join(columns), f"Columns: {', '.join(columns)}")
    for row in index:
        boxes = [page[top:bottom, left:right] for top, left, bottom, right in row.get("boxes", [])]
        tile_id = str(row.get("tile_id", ""))
        figures = [
            picture(image, f"{tile_id}: {column}", column)
            for image, column in zip(boxes, columns, strict=False)
            if image.size
        ]
        if figures:
            yield node("div", node("h3", tile_id), pictures(figures))


def _narrowed(page: UInt8Array) -> UInt8Array:
    height, width = page.shape[:2]
    if width <= WIDEST_SHEET:
        return page
    size = (WIDEST_SHEET, round(height * WIDEST_SHEET / width))
    return np.asarray(cv2.resize(page, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _within(rows: Iterator[Element], budget: int) -> list[Element]:
    """The first rows that fit into `budget` letters, and one at least."""
    kept: list[Element] = []
    used = 0
    for row in rows:
        used += size_of(row)
        if kept and used > budget:
            break
        kept.append(row)
    return kept


def scores_section(facts: RunFacts) -> list[Element]:
    """The scores against drawn masks, and tiles that show what they mean."""
    splits = {name: arms for name, arms in facts.scores.items() if isinstance(arms, dict) and arms}
    if not splits:
        return []
    explained = (
        "Measured after training against drawn masks; 1 is perfect. Dice: pixels. AJI, AJI+ and PQ (its parts DQ: "
        "nuclei found, SQ: their outlines): whole nuclei. F1d: nuclei met by their centre. Scores report, and chose "
        "nothing. The marked network is the product."
    )
    heads = ["Split", "Network", "Dice", "AJI", "AJI+", "DQ", "SQ", "PQ", "F1d"]
    product = f"cycle {facts.best.get('cycle')}"
    rows = [
        [split, arm, *_numbers(found.get("mean", {}))] for split, arms in splits.items() for arm, found in arms.items()
    ]
    chosen = [i for i, row in enumerate(rows) if row[1] == product]
    parts = [node("h2", "Scores"), node("p", explained), table(heads, rows, range(2, len(heads)), chosen)]
    tiles = [row for split, arms in splits.items() for row in ranked(split, arms.get(product, {}).get("tiles", {}))]
    if not tiles:
        return parts
    told = [[row["split"], row["which"], row["tile_id"], *_numbers(row["scores"])] for row in tiles]
    heads[1:2] = ["By AJI", "Tile"]
    return [*parts, node("h3", "Tiles"), table(heads, told, range(3, len(heads))), *_scored(facts)]


def _numbers(scores: dict[str, Any]) -> list[Child]:
    return [f"{scores[name]:.3f}" if isinstance(scores.get(name), (int, float)) else "\u2013" for name in SCORES]


def _scored(facts: RunFacts) -> list[Element]:
    """Pictures of these tiles, where scoring left any."""
    parts: list[Element] = []
    for row in facts.scored:
        name = f"{row.get('split')}: {RANKS.get(str(row.get('which')), '')}, {row.get('tile_id')}"
        index = [{"tile_id": name, "boxes": row.get("boxes", [])}]
        parts += _rows_of(facts, f"scored/{row.get('file')}", index, SCORED)
    kept = _within(iter(parts), SCORED_LETTERS)
    words = (
        "Green: nuclei that the drawn mask and the network agree on (more than half of what either covers is common). "
        "Blue: drawn, and missed. Red: found by the network, and not drawn."
    )
    return [node("p", words), *kept] if kept else []
