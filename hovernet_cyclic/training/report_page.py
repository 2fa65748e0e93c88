"""The page that a report is written on: elements, style and pictures, all in one file that asks the network nothing."""

from __future__ import annotations

import base64
import re
from collections.abc import Container, Iterable, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import cv2
import numpy as np

from hovernet_cyclic.core.types import UInt8Array

Child = str | Element | None
QUALITY = 80
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # what no HTML file may hold
# Pictures may come from this file alone, and nothing may come from elsewhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1d2126; --faint: #5c6670; --line: #d9dee3; --panel: #f4f6f8;
  --accent: #1a5fb4; --good: #1f7a3d; --bad: #a8321f; --mark: #fff3c4; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --text: #e4e7ea; --faint: #9aa4ae; --line: #343b43; --panel: #1e2329; --accent: #7ab2f4;
    --good: #6fcf8e; --bad: #f2907c; --mark: #4a3f14; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1, h3 { overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; }
p { margin: .4rem 0; max-width: 80ch; }
p.faint { max-width: none; }
.faint, figcaption { color: var(--faint); font-size: .875rem; }
.verdict { background: var(--panel); border-left: 5px solid var(--accent); border-radius: 4px; padding: .75rem 1rem;
  margin: 1rem 0; }
.verdict p { max-width: none; }
.verdict p:first-child { font-size: 1.1rem; font-weight: 600; }
code, pre { font-family: ui-monospace, "Cascadia Mono", Menlo, "DejaVu Sans Mono", monospace; font-size: .85em; }
pre { background: var(--panel); border-radius: 4px; padding: .6rem .8rem; margin: .4rem 0; white-space: pre-wrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
td.words { min-width: 14rem; }
td.bar { min-width: 8rem; width: 30%; vertical-align: middle; }
td.bar div { background: var(--accent); height: .7rem; border-radius: 2px; min-width: 1px; }
tr.chosen td { background: var(--mark); }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .35rem 0; }
.pictures { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: .5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 1rem; }
@media (max-width: 640px) { .pictures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  body { padding: 1rem .75rem 3rem; } td.bar { min-width: 4rem; } }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 3px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--faint); font: 10px system-ui, "DejaVu Sans", sans-serif; }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 1.5; stroke-linejoin: round; }
svg .band { fill: var(--accent); opacity: .18; stroke: none; }
svg .axis { stroke: var(--line); stroke-width: 1; }
svg .edge { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 3 3; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1rem; margin: .4rem 0; }
dt { color: var(--faint); } dd { margin: 0; }
@media (max-width: 640px) { dl { grid-template-columns: minmax(0, 1fr); } dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; } }
"""


def node(tag: str, *children: Child | Iterable[Child], **attributes: str | int | float) -> Element:
    """An element. Text is escaped when the page is written; None is left out.

    attributes: `class_` for class, and else an underscore for each hyphen.
    """
    named = {key.rstrip("_").replace("_", "-"): _printable(str(value)) for key, value in attributes.items()}
    element = Element(tag, named)
    for child in children:
        for item in [child] if child is None or isinstance(child, (str, Element)) else child:
            _append(element, item)
    return element


def _append(element: Element, child: Child) -> None:
    if isinstance(child, Element):
        element.append(child)
    elif child is not None and len(element):
        element[-1].tail = (element[-1].tail or "") + _printable(child)
    elif child is not None:
        element.text = (element.text or "") + _printable(child)


def _printable(text: str) -> str:
    return UNPRINTABLE.sub("\ufffd", text)


def page_of(title: str, body: Iterable[Child]) -> str:
    """The whole HTML file."""
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", **{"http-equiv": "Content-Security-Policy", "content": POLICY}),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("title", title),
        node("style", STYLE),
    )
    html = node("html", head, node("body", node("main", body)), lang="en")
    return "<!DOCTYPE html>\n" + ElementTree.tostring(html, encoding="unicode", method="html") + "\n"


def table(
    heads: Sequence[str], rows: Iterable[Sequence[Child]], numbers: Iterable[int], chosen: Container[int] = ()
) -> Element:
    """A table that scrolls where it is wider than the screen.

    numbers: the columns that are aligned as numbers. chosen: the rows that are marked.
    """
    columns = set(numbers)

    def cells(tag: str, row: Sequence[Child]) -> list[Element]:
        return [
            node(tag, cell, **({"class_": "number"} if i in columns else {}))
            if not (isinstance(cell, Element) and cell.tag == "td")
            else cell
            for i, cell in enumerate(row)
        ]

    body = [
        node("tr", cells("td", row), **({"class_": "chosen"} if index in chosen else {}))
        for index, row in enumerate(rows)
    ]
    return node("div", node("table", node("thead", node("tr", cells("th", heads))), node("tbody", body)), class_="wide")


def definitions(pairs: Iterable[tuple[str, Child]]) -> Element:
    """Names and what they are."""
    return node("dl", [part for name, value in pairs for part in (node("dt", name), node("dd", value))])


def picture(image: UInt8Array, alt: str, caption: Child) -> Element:
    """uint8 (H, W, 3) RGB as a figure, stored in the page."""
    encoded = cv2.imencode(".webp", image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1]
    source = "data:image/webp;base64," + base64.b64encode(np.asarray(encoded).tobytes()).decode("ascii")
    height, width = image.shape[:2]
    shown = node("img", src=source, alt=alt, width=width, height=height)
    return node("figure", shown, node("figcaption", caption))


def pictures(figures: Sequence[Element]) -> Element:
    """Figures side by side, two a row on a narrow screen."""
    return node("div", figures, class_="pictures", style=f"--columns: {len(figures)}")


def size_of(element: Element) -> int:
    """Letters of an element as it is written."""
    return len(ElementTree.tostring(element, encoding="unicode", method="html"))
