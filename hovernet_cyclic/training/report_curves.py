"""Curves of the losses as drawings of a few kilobytes, however many steps there are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from hovernet_cyclic.core.metrics import Float64Array
from hovernet_cyclic.core.types import Int64Array
from hovernet_cyclic.training.report_page import node

WIDTH, HEIGHT = 340, 150  # of a drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 40, 6, 16, 18
MOST_POINTS = 120
LABEL_ROOM = 46  # between two labels, so that none is written over another


class Thinned(NamedTuple):
    """P points of a curve. steps, mean, low, high: float64 (P,); nan where no value of a point is known."""

    steps: Float64Array
    mean: Float64Array
    low: Float64Array
    high: Float64Array


def thin(steps: Int64Array, values: Float64Array, most: int = MOST_POINTS) -> Thinned:
    """At most `most` points, each of as many neighbouring steps: their mean, lowest and highest value.

    steps: int64 (S,), ascending. values: float64 (S,); nan where unknown.
    """
    cuts = np.linspace(0, len(steps), min(most, len(steps)) + 1).round().astype(int)
    parts = [values[begin:end] for begin, end in pairwise(cuts)]
    known = [part[np.isfinite(part)] for part in parts]
    mean, low, high = (
        np.array([take(part) if len(part) else np.nan for part in known], np.float64)
        for take in (np.mean, np.min, np.max)
    )
    middle = [steps[begin:end].mean() for begin, end in pairwise(cuts)]
    return Thinned(np.array(middle, np.float64), mean, low, high)


class Scale(NamedTuple):
    """From steps and values to places in the drawing."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        """From the left."""
        share = (step - self.first) / max(1e-12, self.last - self.first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """From the top; what lies beyond the scale is put on its edge."""
        share = (min(max(value, self.low), self.high) - self.low) / max(1e-12, self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def chart(name: str, steps: Sequence[int], values: Sequence[float | None], stages: Sequence[str]) -> Element:
    """One curve: a line of means in a band from the lowest to the highest value, with the beginnings of its stages.

    steps: ascending. values: None where unknown. stages: the name of each step's stage.
    """
    at = np.array(steps, np.int64)
    thinned = thin(at, np.array([np.nan if value is None else value for value in values], np.float64))
    known = thinned.mean[np.isfinite(thinned.mean)]
    high = float(known.max()) if len(known) else 1.0
    low = min(0.0, float(known.min())) if len(known) else 0.0
    scale = Scale(float(at[0]), float(at[-1]), low, high if high > low else low + 1.0)
    last = f", {known[-1]:.3g} at the end" if len(known) else ", unknown"
    drawn = node(
        "svg",
        node("title", f"{name}{last}"),
        _axes(scale),
        _edges(scale, steps, stages),
        node("path", d=_band(thinned, scale), class_="band"),
        node("path", d=_line(thinned, scale), class_="curve"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )
    return node("figure", drawn, node("figcaption", node("strong", name), last))


def _axes(scale: Scale) -> list[Element]:
    bottom = HEIGHT - BOTTOM
    lines = [node("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="axis") for y in (TOP, bottom)]
    values = [_text(LEFT - 4, scale.y(value) + 3, f"{value:.3g}", "end") for value in (scale.low, scale.high)]
    ends = [_text(LEFT, HEIGHT - 5, f"step {scale.first:.0f}", "start")]
    ends += [_text(WIDTH - RIGHT, HEIGHT - 5, f"{scale.last:.0f}", "end")] if scale.last > scale.first else []
    return [*lines, *values, *ends]


def _edges(scale: Scale, steps: Sequence[int], stages: Sequence[str]) -> list[Element]:
    """A line where each stage begins, and its name where there is room for it."""
    drawn, before, written = [], "", -LABEL_ROOM
    for step, stage in zip(steps, stages, strict=True):
        if stage == before:
            continue
        x, label = round(scale.x(step), 1), stage_label(stage)
        if before:
            drawn.append(node("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="edge"))
        if label != stage_label(before) and x - written >= LABEL_ROOM and x < WIDTH - LABEL_ROOM:
            drawn.append(_text(x + 2, TOP - 4, label, "start"))
            written = int(x)
        before = stage
    return drawn


def stage_label(stage: str) -> str:
    """'cycle 2 back end 1/2' -> 'cycle 2', 'masks, all' -> 'all'."""
    cycle = re.match(r"cycle \d+", stage)
    return cycle[0] if cycle else stage.rpartition(", ")[2]


def _line(thinned: Thinned, scale: Scale) -> str:
    """A path that is broken where nothing is known."""
    path, pen = [], "M"
    for step, value in zip(thinned.steps, thinned.mean, strict=True):
        if np.isnan(value):
            pen = "M"
            continue
        path.append(f"{pen}{scale.x(step):.1f} {scale.y(value):.1f}")
        pen = "L"
    return "".join(path)


def _band(thinned: Thinned, scale: Scale) -> str:
    """A closed path around the unbroken parts."""
    known = np.isfinite(thinned.mean)
    parts = np.split(np.arange(len(known)), np.flatnonzero(np.diff(known)) + 1)
    paths = []
    for part in parts:
        if known[part[0]] and len(part) > 1:
            there = [f"{scale.x(thinned.steps[i]):.1f} {scale.y(thinned.high[i]):.1f}" for i in part]
            back = [f"{scale.x(thinned.steps[i]):.1f} {scale.y(thinned.low[i]):.1f}" for i in part[::-1]]
            paths.append("M" + "L".join([*there, *back]) + "Z")
    return "".join(paths)


def _text(x: float, y: float, text: str, anchor: str) -> Element:
    return node("text", text, x=round(x, 1), y=round(y, 1), text_anchor=anchor)
