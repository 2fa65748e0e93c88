"""The sections of a run's report that are words, numbers and curves: RunFacts -> elements; none if nothing is known."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from hovernet_cyclic.core.settings import DataSettings, TrainRecipe
from hovernet_cyclic.training.history import losses_of
from hovernet_cyclic.training.progress import GIB, clock
from hovernet_cyclic.training.report_curves import chart
from hovernet_cyclic.training.report_page import Child, definitions, node, table
from hovernet_cyclic.training.run_facts import Row, RunFacts

ENDS = {"front_end": "Front end: the classifier of patches", "back_end": "Back end: HoVer-Net"}
TERMS = {
    "total": "all terms together",
    "patch": "is the patch labelled right",
    "negative": "evidence where there must be none",
    "positive": "evidence where there must be some",
    "pale": "evidence on pixels without stain",
    "np_bce": "nucleus or not, pixel by pixel",
    "np_dice": "nucleus or not, by overlap",
    "hv_mse": "distance from the nucleus centre",
    "hv_msge": "the edges of these distances",
    "tp_bce": "type, pixel by pixel",
    "tp_dice": "type, by overlap",
    "consistency": "agreement with the teacher where nothing is taught",
}
UNMARKED = ("log_dir", "name", "data.reader")  # what every run sets for itself


# --- head -------------------------------------------------------------------------------------------------------------


def head_section(facts: RunFacts) -> list[Element]:
    """Title, verdict and what was learnt from."""
    begun = next((event["time"] for event in facts.events if event["kind"] == "start"), None)
    parts = [
        str(facts.run.path),
        f"begun {_date(begun)}" if begun else "",
        _took(facts),
        f"written {_date(time.time())}",
    ]
    return [
        node("h1", "Training report: ", str(facts.recipe.get("name", facts.run.path.name))),
        node("p", " · ".join(filter(None, parts)), class_="faint"),
        node("div", [node("p", line) for line in (verdict(facts), honesty(facts)) if line], class_="verdict"),
    ]


def _took(facts: RunFacts) -> str:
    return f"{clock(facts.seconds)} of work" if facts.seconds else ""


def verdict(facts: RunFacts) -> str:
    """Which network is the product, and why, in words."""
    done, best = len(facts.cycles), facts.best
    if facts.supervision == "masks":
        steps, of = best.get("steps", 0), _mapping(facts.recipe.get("back_end")).get("steps", 0)
        if facts.finished and steps >= of:
            return f"The product, net.tar, is the network after {steps} steps on drawn masks."
        return f"Not finished: {steps} of {of} steps are done."
    if not best:
        return "No cycle is finished yet." if done == 0 else "No cycle was kept: the table below says why."
    if not facts.finished:
        so_far = f"The best so far is cycle {best['cycle']}: {_why(best)}."
        return f"Not finished: {done} of {facts.asked} cycles are done. {so_far}"
    of = f"cycle {best['cycle']} of {done}" if done > 1 else "the only cycle"
    later = [str(row["cycle"]) for row in facts.cycles if row["cycle"] > best["cycle"]]
    undone = f" What came after it (cycle {_listed(later)}) was rolled back." if later else ""
    return f"The product, net.tar, is the network of {of}: {_why(best)}.{undone}"


def _why(best: Row) -> str:
    surplus = number(best.get("surplus"))
    if surplus is None:
        return _reason(best)
    return f"it finds {surplus} nuclei per mm² more in held-out patches that show nuclei than in those that show none"


def _reason(row: Row) -> str:
    """The reason of a row, without the outcome that begins it."""
    return re.sub(r"^(kept|rolled back): ", "", str(row.get("reason", "")))


def honesty(facts: RunFacts) -> str:
    """What the run learnt from, and which drawn masks it read."""
    net = _mapping(facts.recipe.get("net"))
    told = {"image_level": _without_masks, "mixed": _with_some_masks, "masks": _with_masks}.get(facts.supervision)
    if told is None:
        return ""
    after = ["Drawn masks were opened after training, to measure the scores below."] if facts.scores else []
    begun = [f"The encoder began from the weights of {net['pretrained']}."] if net.get("pretrained") else []
    return " ".join([*told(facts.data), *begun, *after])


def _without_masks(data: Row) -> list[str]:
    return [
        f"It learnt from image-level labels alone{_patches(data, data.get('tiles', 0))}.",
        "No drawn mask was read in training: none taught the network, set a threshold or chose a cycle.",
    ]


def _with_some_masks(data: Row) -> list[str]:
    drawn = data.get("drawn", [])
    labelled = f"It learnt from image-level labels{_patches(data, data.get('tiles', 0) - len(drawn))}"
    masks = f"from the drawn masks of {_count(len(drawn))} tiles ({_listed(drawn)})" if drawn else "from drawn masks"
    return [f"{labelled}, and {masks}.", "No other drawn mask was read in training."]


def _with_masks(data: Row) -> list[str]:
    tiles = data.get("tiles")
    return [f"It learnt from the drawn masks of {_count(tiles)} tiles." if tiles else "It learnt from drawn masks."]


def _patches(data: Row, tiles: int) -> str:
    if not data.get("patches"):
        return ""
    split = f"{_count(data.get('positive', 0))} with a nucleus, {_count(data.get('negative', 0))} without"
    return f": {_count(data['patches'])} patches ({split}) and {_count(tiles)} tiles without labels"


# --- cycles -----------------------------------------------------------------------------------------------------------


def cycles_section(facts: RunFacts) -> list[Element]:
    """The table of cycles."""
    if not facts.cycles:
        return []
    columns = [column for column in _cycle_columns(facts) if any(column[1](row) is not None for row in facts.cycles)]
    rows = [[_known(read(row)) for _, read, _ in columns] for row in facts.cycles]
    chosen = [i for i, row in enumerate(facts.cycles) if row is facts.best]
    numbers = [i for i, (_, _, number) in enumerate(columns) if number]
    explained = (
        "The score needs no drawn mask. It counts nuclei in patches that were held out of training, each by how convex "
        "it is: how many per mm² are found where people saw nuclei, less how many where they saw none. A cycle that "
        "scores clearly below the best so far (by a tenth) is undone. The marked row is "
        f"{'the product' if facts.finished else 'the best'}."
    )
    head = node("h2", "Training" if facts.supervision == "masks" else "Cycles")
    return [
        head,
        *([] if facts.supervision == "masks" else [node("p", explained)]),
        table([name for name, _, _ in columns], rows, numbers, chosen),
    ]


def _cycle_columns(facts: RunFacts) -> list[tuple[str, Callable[[Row], Child], bool]]:
    """(name, row -> cell or None where it is not known, whether it is a number)."""

    def labels(key: str) -> Callable[[Row], Any]:
        return lambda row: row.get(key, facts.of_cycle("labels", row["cycle"]).get(key))

    def accuracy(row: Row) -> Any:
        return facts.of_cycle("patches", row["cycle"]).get("accuracy")

    return [
        ("Cycle", lambda row: str(row["cycle"]), True),
        ("Outcome", _outcome, False),
        ("Score", lambda row: number(row.get("surplus")), True),
        ("Found per mm²", lambda row: number(row.get("found")), True),
        ("False per mm²", lambda row: number(row.get("false")), True),
        ("Nuclei trusted", lambda row: number(labels("nuclei")(row)), True),
        ("Pixels taught", lambda row: percent(labels("taught")(row)), True),
        ("Held-out patches right", lambda row: percent(accuracy(row)), True),
        ("Steps", lambda row: number(row.get("steps")), True),
        ("Minutes", lambda row: number(row["seconds"] / 60, 1) if row.get("seconds") else None, True),
        ("Why", lambda row: node("td", _reason(row), class_="words"), False),
    ]


def _outcome(row: Row) -> Child:
    kept = bool(row.get("kept"))
    return node("span", "kept" if kept else "rolled back", class_="good" if kept else "bad")


# --- curves and time --------------------------------------------------------------------------------------------------


def curves_section(facts: RunFacts) -> list[Element]:
    """A drawing for each term of the loss of both ends."""
    found = losses_of(facts.losses)
    if not found:
        return []
    explained = (
        "Each point is the mean of neighbouring steps, the band reaches from their lowest to their highest value, and "
        "a broken line marks where a stage begins."
    )
    parts: list[Element] = [node("h2", "Curves of the loss"), node("p", explained)]
    for curves, steps in found.items():
        at, stages = list(steps), [str(loss.get("stage", "")) for loss in steps.values()]
        values = [loss["parts"] for loss in steps.values()]
        terms = dict.fromkeys(name for known in values for name in known)
        series = {"total": [_total(known) for known in values]} if len(terms) > 1 else {}
        series |= {name: [known.get(name) for known in values] for name in terms}
        named = {f"{name} ({TERMS[name]})" if name in TERMS else name: curve for name, curve in series.items()}
        charts = [chart(name, at, curve, stages) for name, curve in named.items()]
        parts += [node("h3", ENDS.get(curves, curves)), node("div", charts, class_="charts")]
    return parts


def _total(values: Mapping[str, float | None]) -> float | None:
    known = [value for value in values.values() if value is not None]
    return sum(known) if len(known) == len(values) else None


def time_section(facts: RunFacts) -> list[Element]:
    """Where the time went: kinds of stages, and each stage."""
    if not facts.stages:
        return []
    kinds = _summed(facts.stages, lambda name: re.sub(r"^cycle \d+ | \d+/\d+$", "", name))
    each = _summed(facts.stages, lambda name: name)
    heads = ["Stage", "Time", "", "Images/s", "Waited for data", "Memory", "GPU memory"]
    known = [i for i, _ in enumerate(heads) if i < 3 or any(row[i] for row in each)]

    def shown(rows: list[list[Any]]) -> Element:
        return table(
            [heads[i] for i in known], [[row[i] for i in known] for row in rows], set(range(len(known))) - {0, 2}
        )

    details = node("details", node("summary", f"Each of the {len(each)} stages"), shown(each))
    return [node("h2", "Time"), shown(kinds), *([details] if len(each) > len(kinds) else [])]


def _summed(stages: Iterable[Row], key: Callable[[str], str]) -> list[list[Any]]:
    groups: dict[str, list[Row]] = {}
    for stage in stages:
        groups.setdefault(key(str(stage.get("name", ""))), []).append(stage)
    seconds = {name: sum(stage["seconds"] for stage in group) for name, group in groups.items()}
    whole = max(1e-9, sum(seconds.values()))
    return [_time_row(name, group, seconds[name], whole) for name, group in groups.items()]


def _time_row(name: str, group: list[Row], seconds: float, whole: float) -> list[Any]:
    def most(key: str) -> str:
        known = [stage[key] for stage in group if stage.get(key)]
        return f"{max(known) / GIB:.1f} GiB" if known else ""

    images = sum(stage.get("images") or 0 for stage in group)
    trained = any(stage.get("loss") is not None for stage in group)  # elsewhere there is nothing but the data
    waited = sum(stage.get("waited") or 0 for stage in group)
    bar = node("td", node("div", style=f"width: {100 * seconds / whole:.1f}%"), class_="bar")
    rate, share = number(images / max(1e-9, seconds), 1), percent(waited / max(1e-9, seconds))
    told = [rate if images else "", share if trained else ""]
    return [name, clock(seconds), bar, *told, most("memory"), most("gpu_memory")]


# --- recipe and origin ------------------------------------------------------------------------------------------------


def recipe_section(facts: RunFacts) -> list[Element]:
    """Every setting, with those marked that are not the default."""
    if not facts.recipe:
        return []
    ours, usual = flat(facts.recipe), flat(TrainRecipe("", DataSettings("folder")).to_dict())
    changed = [name for name in ours if name not in UNMARKED and (name not in usual or ours[name] != usual[name])]
    rows: list[list[Child]] = [
        [node("code", name), _written(value), _written(usual[name]) if name in changed and name in usual else ""]
        for name, value in ours.items()
    ]
    marked = [i for i, name in enumerate(ours) if name in changed]
    told = (
        f"{len(changed)} of {len(ours)} settings differ from their defaults" if changed else "All settings are defaults"
    )
    return [
        node("h2", "Recipe"),
        node("p", f"{told}. What each means stands in docs/recipes.md."),
        *([table(["Setting", "Here", "Default"], [rows[i] for i in marked], ())] if marked else []),
        node("details", node("summary", "The recipe in full"), table(["Setting", "Here", "Default"], rows, (), marked)),
    ]


def flat(values: Row, before: str = "") -> Row:
    """{'net': {'mode': 'small'}} -> {'net.mode': 'small'}."""
    found: Row = {}
    for key, value in values.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


def origin_section(facts: RunFacts) -> list[Element]:
    """How it was made, and how to go on."""
    data = facts.data
    counts = [f"{_count(data[key])} {name}" for key, name in _COUNTED if data.get(key)]
    facts_told: list[tuple[str, Child]] = [
        ("Data folder", _text_of(facts.about.get("data_dir"))),
        ("Data", ", ".join(counts) or None),
        ("Drawn masks learnt from", _listed(data.get("drawn", [])) or None),
        ("Seed", _text_of(facts.recipe.get("seed"))),
        ("Versions", ", ".join(f"{name} {number}" for name, number in facts.about.get("versions", {}).items()) or None),
    ]
    starts = [event for event in facts.events if event["kind"] == "start"]
    commands = [
        (
            f"{'Begun' if i == 0 else 'Resumed'} {_date(event['time'])}",
            _command(event.get("command", []), event["device"]),
        )
        for i, event in enumerate(starts)
    ] or [("Command", _command(facts.about.get("command", []), ""))]
    product = f"--model_path={shlex.quote(str(facts.run.net))}"
    use = f"python run_infer.py {product} tile --input_dir=<images> --output_dir=<results>"
    return [
        node("h2", "How it was made"),
        definitions([(name, value) for name, value in [*facts_told, *commands] if value is not None]),
        *([node("h3", "Use it"), node("pre", use)] if facts.run.net.exists() else []),
    ]


_COUNTED = (
    ("tiles", "tiles"),
    ("patches", "labelled patches"),
    ("positive", "of them with a nucleus"),
    ("negative", "without"),
    ("groups", "images that patches were cut from"),
    ("held_groups", "of these held out to judge cycles by"),
    ("held_patches", "patches held out with them"),
)


def _command(command: list[str], device: str) -> Child:
    if not command:
        return None
    return node("span", node("code", shlex.join(["python", *map(str, command)])), f" on {device}" if device else None)


# --- words ------------------------------------------------------------------------------------------------------------


def number(value: Any, places: int = 0) -> str | None:
    """1234.5 -> '1,234', or None where it is not known."""
    return f"{value:,.{places}f}" if isinstance(value, (int, float)) else None


def percent(value: Any) -> str | None:
    """.123 -> '12 %', or None where it is not known."""
    return f"{100 * value:.0f} %" if isinstance(value, (int, float)) else None


def _known(cell: Child) -> Child:
    return "\u2013" if cell is None else cell


def _mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _count(value: int) -> str:
    return f"{value:,}"


def _listed(names: list[str], most: int = 20) -> str:
    shown = ", ".join(map(str, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _written(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_written, value)) or "none"
    return "none" if value is None else str(value)


def _text_of(value: Any) -> str | None:
    return None if value is None else str(value)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
