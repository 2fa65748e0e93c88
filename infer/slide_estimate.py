"""How much memory, disk and time slides will take."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.types import Box, Pixels, SlideSegmenter
from infer.slide_plan import MARGIN, SlidePlan

GIB = 1 << 30
USUAL_WINDOW = 2048  # px
SMALLEST_WINDOW = 512
USUAL_GIB = {"small": 3.0, "fast": 10.0, "original": 10.0}  # on a CPU, unless --max_memory says otherwise
USUAL_GIB_BESIDE_GPU = 12.0
MOST_WORKERS = 8
# Of that, what a patch may take on its way through the network; px a side from which larger ones gain no more.
SHARE_OF_PATCH = 0.4
LARGEST_PATCH = {"original": 1334, "fast": 1232, "small": 2048}
BYTES_OF_PATCH = {"original": 10400, "fast": 6400, "small": 520}  # a pixel of its input, in float32
# Measured with benchmarks/slides.py (docs/slides.md).
BASE_BYTES = 0.5 * GIB  # the interpreter, torch and a network
WORKER_BYTES = 0.25 * GIB
BYTES_OF_MAPS = 15  # a pixel: image, probability, hv
BYTES_OF_POST_PROC = 90  # a pixel of the cut-out that is post-processed
WINDOWS_IN_MEMORY = 4  # being read, in the network, waiting, joined
# A pixel of a window: the sums of two windows, a view of each, and what turns them back. Counted, not measured.
BYTES_OF_VIEWS, BYTES_OF_VIEWS_BY_TYPE = 64, 16
BYTES_OF_NUCLEUS = 1600  # in all files and the journal
TYPICAL_NUCLEI_PER_MM2 = 2500


def largest_patch(mode: str, device: str, most_gib: float | None) -> int:
    """Input px a side of the network's patches on a device ('cpu' or other).

    It follows from what is asked alone, and not from the memory that happens to be free: a run that goes on another day
    must go on with the same.
    """
    if device != "cpu":
        return LARGEST_PATCH[mode]
    bytes_of_patch = (most_gib or USUAL_GIB[mode]) * GIB * SHARE_OF_PATCH
    return min(LARGEST_PATCH[mode], math.isqrt(int(bytes_of_patch / BYTES_OF_PATCH[mode])))


def memory_bytes(window: int, nr_types: int, workers: int, patch_bytes: float, views: int = 1) -> float:
    """Estimate of the peak resident memory of a run. nr_types: 0 for none. workers: processes of their own.

    views: of how many the network's answer is the mean.
    """
    maps = BYTES_OF_MAPS + (1 + 2 * nr_types if nr_types else 0)
    cut_out = (window + 2 * MARGIN) ** 2
    jobs = max(1, 2 * workers)
    held = cut_out * maps * (WINDOWS_IN_MEMORY + jobs)
    held += window**2 * (BYTES_OF_VIEWS + BYTES_OF_VIEWS_BY_TYPE * nr_types if views > 1 else 0)
    own = BASE_BYTES + patch_bytes + workers * WORKER_BYTES
    return own + held + max(1, workers) * cut_out * BYTES_OF_POST_PROC


def choose_workers(asked: int | None, device: str, most_gib: float | None, nr_types: int, views: int = 1) -> int:
    """Processes that post-process: as asked, or as many as cores and memory keep busy."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gib = most_gib or (USUAL_GIB["small"] if device == "cpu" else USUAL_GIB_BESIDE_GPU)
    workers = max(0, min(cores - 1, MOST_WORKERS))
    while workers and memory_bytes(USUAL_WINDOW, nr_types, workers, gib * GIB * SHARE_OF_PATCH, views) > gib * GIB:
        workers -= 1
    return workers


def choose_window(asked: int | None, most_gib: float | None, nr_types: int, workers: int, views: int = 1) -> int:
    """px a side of a window: as asked, or as large as memory allows.

    Raises RecipeError where no window fits `most_gib`. The result does not depend on it, only speed.
    """
    choices = range(USUAL_WINDOW, SMALLEST_WINDOW - 1, -256) if asked is None else [max(asked, SMALLEST_WINDOW)]
    needed = 0.0
    for window in choices:
        needed = memory_bytes(window, nr_types, workers, (most_gib or 0) * GIB * SHARE_OF_PATCH, views)
        if most_gib is None or needed <= most_gib * GIB:
            return window
    assert most_gib is not None
    least = (needed / GIB - most_gib * SHARE_OF_PATCH) / (1 - SHARE_OF_PATCH)
    raise RecipeError(
        f"--max_memory={most_gib:g} is too small: {math.ceil(least * 10) / 10:.1f} GiB are needed at least; "
        f"give more, or a smaller --tile_shape, or fewer --nr_post_proc_workers{' or --views' if views > 1 else ''}."
    )


@dataclass(frozen=True)
class Estimate:
    """Of one slide. windows: for the network. mm2: of tissue. disk: bytes. seconds: of the network alone."""

    windows: int
    mm2: float
    disk: int
    seconds: float

    def plus(self, other: Estimate) -> Estimate:
        """Of two slides."""
        return Estimate(
            self.windows + other.windows,
            self.mm2 + other.mm2,
            self.disk + other.disk,
            self.seconds + other.seconds,
        )


def estimate(plan: SlidePlan, seconds_per_megapixel: float) -> Estimate:
    """What a slide will take."""
    windows = plan.windows_for(plan.wanted)
    boxes = [tile.tile.window for tile in plan.tiles if tile.key in windows]
    pixels = sum(box.height * box.width for box in boxes)
    pixel_mm2 = plan.view.mpp[0] * plan.view.mpp[1] / 1e6
    share = 1.0 if plan.tissue is None else plan.tissue.share
    mm2 = min(plan.view.shape[0] * plan.view.shape[1] * share, pixels) * pixel_mm2
    disk = int(mm2 * TYPICAL_NUCLEI_PER_MM2 * BYTES_OF_NUCLEUS)
    return Estimate(len(boxes), mm2, disk, pixels / 1e6 * seconds_per_megapixel)


def time_network(segmenters: Sequence[SlideSegmenter]) -> float:
    """Seconds per megapixel, of one megapixel or so of noise, warmed up; devices work at the same time."""
    side = 1024
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    box = Box(0, 0, side, side)
    pixels = Pixels(image, box, (side, side), box)
    segmenters[0].raw_maps_of(Pixels(image[:256, :256], Box(0, 0, 256, 256), (256, 256), Box(0, 0, 256, 256)))
    begin = time.perf_counter()
    segmenters[0].raw_maps_of(pixels)
    return (time.perf_counter() - begin) / (side * side / 1e6) / len(segmenters)


def duration(seconds: float) -> str:
    """'45 s', '12 min' or '3.4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """'12 MB' or '3.4 GB'."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
