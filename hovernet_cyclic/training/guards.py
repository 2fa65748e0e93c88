"""What stops a run, or one of its cycles, before it learns nonsense."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hovernet_cyclic.core.types import PseudoMask

MOST_NUCLEI_PER_MM2 = 30_000.0  # one in 33 um2, less than a lymphocyte covers: tissue is never that full of nuclei
FEWEST_COVERED = 1e-4  # of the pixels taught: a nucleus in half a square millimetre
MOST_COVERED = 0.9  # of the pixels taught: nuclei have a surround that is taught too
MOST_GROWTH = 5.0  # times as many nuclei as in the cycle before; a cycle that goes well finds up to twice as many


class MaskCount(NamedTuple):
    """Of a set of pseudo masks: nuclei, area in mm2, and share in [0, 1] of the pixels taught that nuclei cover."""

    nuclei: int
    area: float
    covered: float


def count_masks(masks: Sequence[PseudoMask], mpp: float) -> MaskCount:
    """Counts over all masks. mpp: um/px. Where no pixel is taught at all, `covered` is 0."""
    pixels = sum(mask.inst_map.size for mask in masks)
    taught = sum(int(mask.trusted.sum()) for mask in masks)
    covered = sum(int(np.count_nonzero(mask.trusted & (mask.inst_map > 0))) for mask in masks)
    nuclei = sum(len(mask.confidence) for mask in masks)
    return MaskCount(nuclei, pixels * (mpp / 1000) ** 2, covered / max(1, taught))


def collapse_of(count: MaskCount, nuclei_before: int | None) -> str:
    """What is wrong with a set of pseudo masks, in words; '' where nothing is.

    nuclei_before: of the last cycle that was kept, on the same tiles; None where there is none.
    """
    density = count.nuclei / count.area
    if not count.nuclei:
        return "they hold no nucleus"
    if count.covered < FEWEST_COVERED:
        return f"all is background: nuclei cover {count.covered:.3%} of the pixels taught"
    if count.covered > MOST_COVERED:
        return f"all is nucleus: nuclei cover {count.covered:.0%} of the pixels taught"
    if density > MOST_NUCLEI_PER_MM2:
        return f"they hold {density:.0f} nuclei per mm2, more than there is room for"
    if nuclei_before and count.nuclei > MOST_GROWTH * nuclei_before:
        return f"they hold {count.nuclei} nuclei, after {nuclei_before} in the last cycle that was kept"
    return ""


def save_batch(path: Path, where: str, batch: Any) -> None:
    """Write a batch, a named tuple of arrays and of lists of dataclasses of arrays, as .npz with its stage and step.

    A list becomes one array a field, stacked, under the field's name; fields that are None are left out.
    """
    arrays: dict[str, Any] = {"where": np.array(where)}
    for name, value in batch._asdict().items():
        if isinstance(value, list) and dataclasses.is_dataclass(value[0]):
            for field in dataclasses.fields(value[0]):
                rows = [getattr(item, field.name) for item in value]
                if all(row is not None for row in rows):
                    arrays[field.name] = np.stack(rows)
        else:
            arrays[name] = np.asarray(value)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
