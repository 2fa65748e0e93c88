"""Score a folder of predicted label maps against a folder of true ones, image by image.

Usage:
  run_eval.py --pred_dir=<dir> --true_dir=<dir> [options]
  run_eval.py (-h | --help)
  run_eval.py --version

Files are paired by name (without suffix): PNG, TIFF, NPY or MAT; a folder written by run_infer.py or by hover_net is
taken as it is (its `mat/` is read).

Options:
  -h --help              Show this text.
  --version              Show the version.
  --pred_dir=<dir>       Predicted label maps.
  --true_dir=<dir>       True label maps.
  --compare=<dir>        A second folder of predictions: also print the first minus the second, image by image.
  --out=<file.json>      Write the same numbers as JSON.
  --types                Also score nucleus types (MAT with inst_type or type_map, NPY with two channels); image by
                         image in --out.
  --true_type_dir=<dir>  Type maps of the true label maps, where they are files of their own.
  --radius=<px>          Centroids further apart are no pair. [default: 12]
  --resamples=<n>        Bootstrap samples. [default: 2000]
  --seed=<n>             Seed of the bootstrap. [default: 0]

Exit code: 0 all images scored, 1 some file has no partner, 2 bad input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hovernet_cyclic.command_faults import option_fault, path_fault
from hovernet_cyclic.command_line import exit_with

if TYPE_CHECKING:
    from hovernet_cyclic.core.comparison import Interval, ScoreTable
    from hovernet_cyclic.core.types import Annotation

COLUMNS = {
    "dice": ("Dice", "foreground Dice: 2 |T and P| / (|T| + |P|), nuclei not told apart"),
    "aji": ("AJI", "aggregated Jaccard index (Kumar 2017): each true nucleus with the prediction of highest IoU"),
    "aji_plus": ("AJI+", "the same with one-to-one pairs of greatest summed IoU"),
    "dq": ("DQ", "detection quality: F1 of nuclei matched at IoU > 0.5"),
    "sq": ("SQ", "segmentation quality: mean IoU of the matched nuclei"),
    "pq": ("PQ", "panoptic quality: DQ x SQ of the image"),
    "iou": ("IoU", "foreground IoU: |T and P| / |T or P| (the published Cyclic Learning code calls it AJI)"),
    "f1d": ("F1d", "F1 of detection: centroids paired one to one within the radius"),
}
IN_JSON_ALONE = {"dice2": "Dice summed over all overlapping pairs of nuclei (ensemble Dice)"}
TYPE_COUNTS = (("true", "true_nuclei"), ("pred", "pred_nuclei"))
TYPE_TITLES = ("PQ", "low", "high", "F1", "low", "high")
WHOLE_TITLES = {"mpq_images": "mPQ, mean over images", "mpq_pooled": "mPQ+, pooled", "accuracy": "type accuracy"}
MOST_RESAMPLES = 100_000  # with a thousand images they take up a gigabyte, and no more of them tell any more
ROWS = {
    "mean": "mean over images",
    "low .. high": "95 % interval of that mean: bootstrap over images",
    "pooled": "all nuclei together, as if the images were one",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. argv: arguments without the program's name."""
    from docopt import DocoptExit, docopt

    from hovernet_cyclic import __version__
    from hovernet_cyclic.core.errors import HoverNetCyclicError

    try:
        arguments = docopt(__doc__ or "", None if argv is None else list(argv), version=__version__)
        report = evaluate(arguments)
        print(render(report))
        if arguments["--out"]:
            write_json(Path(arguments["--out"]), report)
    except DocoptExit as error:
        print(option_fault(error, sys.argv[1:] if argv is None else argv, __doc__ or ""), file=sys.stderr)
        return 2
    except HoverNetCyclicError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(path_fault(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. Nothing is written.", file=sys.stderr)
        return 130
    return 1 if report["without_partner"] else 0


def evaluate(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is printed, as plain values (None where a number is not defined).

    arguments: the options above by name. Raises DatasetError or RecipeError for input that cannot be used.
    """
    from dataloader.label_files import list_label_files
    from hovernet_cyclic.core.comparison import SCORE_NAMES, paired_difference, score_pairs
    from hovernet_cyclic.core.type_comparison import type_difference

    radius, resamples, seed = (_number(arguments, name) for name in ("--radius", "--resamples", "--seed"))
    draw = (int(seed), int(resamples))
    folders = [arguments["--pred_dir"], *filter(None, [arguments["--compare"]])]
    true_files = list_label_files(arguments["--true_dir"])
    pred_files = [list_label_files(folder) for folder in folders]
    stems = _common_stems(arguments["--true_dir"], folders, true_files, pred_files)
    with_types = bool(arguments["--types"])
    type_files = _type_files(arguments)
    report: dict[str, Any] = {
        "format_version": 1,
        "true_dir": str(arguments["--true_dir"]),
        "radius_px": radius,
        "bootstrap": {"seed": draw[0], "resamples": draw[1]},
        "legend": {**{name: meaning for name, (_, meaning) in COLUMNS.items()}, **IN_JSON_ALONE},
        "predictions": [],
    }
    tables = []
    for folder, files in zip(folders, pred_files, strict=True):
        pairs = _read_pairs(stems, true_files, files, type_files)
        table = score_pairs(_with_types(pairs, true_files, files) if with_types else pairs, with_types, radius)
        tables.append(table)
        report["predictions"].append({"pred_dir": str(folder), **_described(table, SCORE_NAMES, draw)})
    if len(tables) == 2:
        report["difference"] = _interval(paired_difference(tables[0], tables[1], *draw), SCORE_NAMES)
        if with_types:
            report["difference"]["types"] = type_difference(tables[0], tables[1], *draw)
    report["without_partner"] = list(_without_partner(true_files, folders, pred_files))
    return report


def render(report: Mapping[str, Any]) -> str:
    """The report as text: tables, then the legend, then the files without a partner."""
    parts = [_score_table(item) for item in report["predictions"]]
    if "difference" in report:
        parts.append(_difference_table(report))
    parts.append(_legend(report))
    if report["without_partner"]:
        parts.append("Not scored, as they have no partner:\n" + "\n".join(f"  {x}" for x in report["without_partner"]))
    return "\n\n".join(parts)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report under a temporary name and rename it. Raises DatasetError where the disk refuses."""
    from hovernet_cyclic.core.errors import DatasetError

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be written ({error.strerror}): give another --out.") from error


def _number(arguments: Mapping[str, Any], name: str) -> float:
    from hovernet_cyclic.core.errors import RecipeError

    try:
        value = float(arguments[name]) if name == "--radius" else float(int(arguments[name]))
    except (ValueError, OverflowError):  # the second: a whole number of hundreds of digits
        value = -1.0
    lowest, highest = (1, MOST_RESAMPLES) if name == "--resamples" else (0, sys.float_info.max)
    if not lowest <= value <= highest:
        bounds = f"from {lowest} to {highest}" if name == "--resamples" else f"from {lowest} on"
        raise RecipeError(f"{name} is '{arguments[name]}': give a number {bounds}.")
    return value


def _common_stems(
    true_dir: str, folders: Sequence[str], true_files: Mapping[str, Path], pred_files: Sequence[Mapping[str, Path]]
) -> list[str]:
    from hovernet_cyclic.core.errors import DatasetError

    stems = sorted(set(true_files).intersection(*pred_files))
    if not stems:
        raise DatasetError(
            f"No name (without suffix) is found in each of {', '.join([true_dir, *folders])}: name the predictions "
            f"like the label maps, as in '{next(iter(true_files))}'."
        )
    return stems


def _type_files(arguments: Mapping[str, Any]) -> Mapping[str, Path] | None:
    from dataloader.label_files import list_label_files
    from hovernet_cyclic.core.errors import RecipeError

    folder = arguments["--true_type_dir"]
    if folder and not arguments["--types"]:
        raise RecipeError("--true_type_dir is of no use without --types: give both, or neither.")
    return list_label_files(folder) if folder else None


def _read_pairs(
    stems: Iterable[str],
    true_files: Mapping[str, Path],
    pred_files: Mapping[str, Path],
    type_files: Mapping[str, Path] | None,
) -> Iterator[tuple[Annotation, Annotation]]:
    """(true, predicted) of each stem, read when asked for."""
    from dataloader.label_files import read_label_map
    from hovernet_cyclic.core.errors import DatasetError

    for stem in stems:
        if type_files is not None and stem not in type_files:
            raise DatasetError(f"{true_files[stem]} has no type map in --true_type_dir: add '{stem}' there.")
        true = read_label_map(true_files[stem], type_files[stem] if type_files else None)
        pred = read_label_map(pred_files[stem])
        sizes = [" x ".join(map(str, item.inst_map.shape)) for item in (true, pred)]
        if sizes[0] != sizes[1]:
            raise DatasetError(
                f"{true_files[stem]} has {sizes[0]} px but {pred_files[stem]} has {sizes[1]}: "
                "give both at the same scale."
            )
        yield true, pred


def _with_types(
    pairs: Iterable[tuple[Annotation, Annotation]], true_files: Mapping[str, Path], pred_files: Mapping[str, Path]
) -> Iterator[tuple[Annotation, Annotation]]:
    """The pairs as they are. Raises DatasetError, naming the file, for one without types."""
    from hovernet_cyclic.core.errors import DatasetError

    for true, pred in pairs:
        if true.type_map is None:
            raise DatasetError(f"{true_files[true.tile_id]} tells no types: give --true_type_dir, or drop --types.")
        if pred.type_map is None:
            raise DatasetError(
                f"{pred_files[pred.tile_id]} tells no types: give MAT files with types, or drop --types."
            )
        yield true, pred


def _described(table: ScoreTable, names: Sequence[str], draw: tuple[int, int]) -> dict[str, Any]:
    """One folder's scores as plain values."""
    from hovernet_cyclic.core.type_comparison import type_report

    rows = zip(table.tile_ids, table.values.tolist(), strict=True)
    described = {
        "images": {tile_id: dict(zip(names, row, strict=True)) for tile_id, row in rows},
        **_interval(table.interval(*draw), names),
        "pooled": table.pooled.as_dict(),
    }
    return {**described, "types": type_report(table, *draw)} if table.typed else described


def _interval(interval: Interval, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """mean, low and high by score; None for an unknown bound."""
    parts = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {
        part: {name: value if value == value else None for name, value in zip(names, values.tolist(), strict=True)}
        for part, values in parts.items()
    }


def _without_partner(
    true_files: Mapping[str, Path], folders: Sequence[str], pred_files: Sequence[Mapping[str, Path]]
) -> Iterator[str]:
    for folder, files in zip(folders, pred_files, strict=True):
        for stem in sorted(set(true_files) - set(files)):
            yield f"{true_files[stem]}: no prediction in {folder}"
        for stem in sorted(set(files) - set(true_files)):
            yield f"{files[stem]}: no true label map"


def _score_table(item: Mapping[str, Any]) -> str:
    rows = [(name, _cells(scores)) for name, scores in item["images"].items()]
    rows += [("mean", _cells(item["mean"])), ("95 % low", _cells(item["low"])), ("95 % high", _cells(item["high"]))]
    rows.append(("pooled", _cells(item["pooled"])))
    text = f"{item['pred_dir']}\n" + _table([title for title, _ in COLUMNS.values()], rows, rule_before="mean")
    return text + ("\n\n" + _type_table(item["types"]) if "types" in item else "")


def _difference_table(report: Mapping[str, Any]) -> str:
    first, second = (item["pred_dir"] for item in report["predictions"])
    rows = [
        (title, _cells(report["difference"][part], sign="+"))
        for title, part in (("mean", "mean"), ("95 % low", "low"), ("95 % high", "high"))
    ]
    text = f"{first} minus {second}, paired by image\n" + _table([title for title, _ in COLUMNS.values()], rows)
    types = report["difference"].get("types")
    return text + ("\n\n" + _type_rows(types["mean"], types["low"], types["high"], sign="+") if types else "")


def _type_table(types: Mapping[str, Any]) -> str:
    return _type_rows(types, types["low"], types["high"])


def _type_rows(found: Mapping[str, Any], low: Mapping[str, Any], high: Mapping[str, Any], sign: str = "") -> str:
    """A row for each type, its nuclei first unless it is a difference, then what is over all types."""
    counts = () if sign else TYPE_COUNTS
    rows = [
        (
            f"type {c}",
            [
                *(str(item[name]) for _, name in counts),
                *(_cell(part["by_type"][c][name], sign) for name in ("pq", "f1") for part in (found, low, high)),
            ],
        )
        for c, item in found["by_type"].items()
    ]
    lines = [
        f"{title}: {_cell(found[name], sign)} ({_cell(low[name], sign)} to {_cell(high[name], sign)})"
        for name, title in WHOLE_TITLES.items()
    ]
    return "\n".join([_table([*(title for title, _ in counts), *TYPE_TITLES], rows), *lines])


def _legend(report: Mapping[str, Any]) -> str:
    lines = [f"  {title:5} {meaning}" for title, meaning in COLUMNS.values()]
    lines[-1] += f" ({report['radius_px']:g} px)"
    lines += [f"  {title}: {meaning}" for title, meaning in ROWS.items()]
    lines.append("  An image without nuclei scores 1 where none is predicted, else 0.")
    if any("types" in item for item in report["predictions"]):
        lines.append("  PQ, F1 by type: pooled over images; F1 as hover_net's F_c^d, a wrong type counting twice.")
        lines.append("  mPQ: mean of PQ over the types that truth or prediction has; type accuracy: of paired nuclei.")
        lines.append("  low, high, and in brackets: 95 % interval, bootstrap over images.")
    return "\n".join(lines)


def _table(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], rule_before: str | None = None) -> str:
    width = max([len(name) for name, _ in rows] + [5])
    lines = [f"{'':{width}}" + "".join(f"{title:>9}" for title in titles)]
    for name, cells in rows:
        if name == rule_before:
            lines.append("-" * len(lines[0]))
        lines.append(f"{name:{width}}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def _cells(scores: Mapping[str, float | None], sign: str = "") -> list[str]:
    return [_cell(scores[name], sign) for name in COLUMNS]


def _cell(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


if __name__ == "__main__":
    exit_with(main)
