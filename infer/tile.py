"""Tile mode: every image of a folder, at the network's scale, to one set of files each."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from dataloader.images import IMAGE_SUFFIXES, list_images, read_rgb
from hovernet_cyclic.core.errors import DatasetError, RecipeError
from hovernet_cyclic.core.types import Pixels, WindowSegmenter, whole_image
from infer.engine import Work, through_networks
from infer.finish import Finisher, finish_all


class Workers(NamedTuple):
    """read: threads that read images ahead. finish: processes that post-process and write. 0: no extra one."""

    read: int
    finish: int


NO_WORKERS = Workers(0, 0)


class TileFiles(NamedTuple):
    """What --input_dir names. images: sorted. left_out: other files in the folder, hidden ones not counted."""

    images: list[Path]
    left_out: list[Path]


@dataclass(frozen=True)
class Summary:
    """What a run did. done: tiles with results. nuclei: in all of them. failures: sentences. seconds: wall time."""

    done: int
    nuclei: int
    failures: tuple[str, ...]
    seconds: float


def list_tiles(input_dir: str | Path) -> TileFiles:
    """The image files of a folder, or the one file that is named (see IMAGE_SUFFIXES).

    Raises DatasetError where there is none, or where two would get the same results' name.
    """
    given = Path(input_dir)
    if given.is_file():
        if given.suffix.lower() not in IMAGE_SUFFIXES:
            raise DatasetError(f"{given} is no image: give one of {', '.join(IMAGE_SUFFIXES)}, or a folder of them.")
        return TileFiles([given], [])
    images = list_images(given)
    by_name: dict[str, Path] = {}
    for image in images:
        other = by_name.setdefault(os.path.normcase(image.stem), image)
        if other is not image:
            raise DatasetError(f"{other} and {image} would get results of the same name: rename one of them.")
    others = (p for p in given.iterdir() if p.is_file() and not p.name.startswith("."))
    return TileFiles(images, sorted(set(others) - set(images)))


def check_writable(output_dir: Path) -> None:
    """Raises RecipeError where no file can be written, before any work is done. Makes nothing."""
    existing = output_dir
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise RecipeError(f"{existing} is a file, so no result can be written there: give another --output_dir.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RecipeError(f"{existing} may not be written to: give another --output_dir, or change its rights.")


def segment_folder(
    segmenters: Sequence[WindowSegmenter],
    images: Sequence[Path],
    finisher: Finisher,
    workers: Workers = NO_WORKERS,
    quiet: bool = False,
) -> Summary:
    """Segment image files and write their results; a file that cannot be processed is named and the others go on.

    segmenters: one per device. images: no two with the same stem. quiet: no progress bar. Of a file that failed no
    result is left, not even that of an earlier run.
    """
    begin = time.monotonic()
    works = (Work(path, partial(_load, path)) for path in images)
    outcomes = finish_all(through_networks(works, segmenters, workers.read), finisher, workers.finish)
    nuclei, failures = 0, []
    with tqdm(total=len(images), unit="tile", disable=quiet, dynamic_ncols=True, mininterval=_interval()) as bar:
        for outcome in outcomes:
            nuclei += outcome.result or 0
            if outcome.failure is not None:
                assert isinstance(outcome.key, Path)
                with contextlib.suppress(OSError):  # the disk's refusal is in the failure's own sentence
                    finisher.outputs.discard(outcome.key.stem)
                failures.append(outcome.failure)
                bar.write(outcome.failure, file=sys.stderr)
            bar.set_postfix_str(f"{nuclei} nuclei", refresh=False)
            bar.update()
    return Summary(len(images) - len(failures), nuclei, tuple(failures), time.monotonic() - begin)


def _interval() -> float:
    """Seconds between two states of the bar: a log file wants fewer of them than a person."""
    return 0.1 if sys.stderr.isatty() else 10.0


def _load(path: Path) -> Pixels:
    return whole_image(read_rgb(path))
