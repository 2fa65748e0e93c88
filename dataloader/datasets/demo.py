"""Drawn H&E-like data with exact masks, laid out as `folder` expects it. For trying the method without real slides."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataloader.datasets.demo_nuclei import (
    EPITHELIAL,
    PALE,
    PLEOMORPHIC,
    NucleiPlan,
    add_nuclei,
)
from dataloader.datasets.demo_stain import photograph, random_stain
from dataloader.datasets.demo_tissue import Tissue, TissuePlan, draw_tissue
from dataloader.datasets.folder import open_folder
from dataloader.images import write_png
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import DataSplits, Int32Array

DEMO_MPP = 0.25
DEMO_SEED = 10
DEMO_VERSION = 1
_MARKER = "demo.json"
_FIELD_PATCHES = 3  # a field that patches are cut from is this many patches high and wide

# Streams of random numbers: a tile does not change when the number of patches does.
_PATCH_STREAM, _BARE_STREAM, _TILE_STREAM, _VALID_STREAM, _TEST_STREAM = range(5)


@dataclass(frozen=True)
class DemoSizes:
    """How much is drawn. Counts of images; patch and tile: side in px."""

    positives: int = 320
    negatives: int = 320
    tiles: int = 12
    valid: int = 4
    test: int = 4
    patch: int = 96
    tile: int = 512


def open_demo(data: DataSettings, data_dir: Path) -> DataSplits:
    """The drawn data of `data_dir`, drawn first where there is none yet (about half a minute).

    Raises DatasetError for a folder of other files, or of another version's drawing, and for another mpp.
    """
    if data.mpp != DEMO_MPP:
        raise DatasetError(f"The demo is drawn at {DEMO_MPP} um/px but data.mpp is {data.mpp}: set it to {DEMO_MPP}.")
    if not _is_drawn(data_dir):
        write_demo_data(data_dir)
    return open_folder(data, data_dir)


def write_demo_data(folder: str | Path, seed: int = DEMO_SEED, sizes: DemoSizes | None = None) -> None:
    """Draws patches, tiles, valid and test images with label maps into `folder`; the same seed gives the same files.

    Images are 8-bit RGB PNG, label maps uint16 PNG, 0 background, 1..N nuclei. `labels` holds those of `tiles`.
    """
    root, sizes = Path(folder), sizes or DemoSizes()
    root.mkdir(parents=True, exist_ok=True)
    _write_marker(root, seed, sizes, complete=False)
    _write_patches(root / "patches" / "positive", seed, sizes, positive=True)
    _write_patches(root / "patches" / "negative", seed, sizes, positive=False)
    _write_tiles((root / "tiles", root / "labels"), (seed, _TILE_STREAM), sizes.tiles, sizes.tile)
    for name, stream, count in (("valid", _VALID_STREAM, sizes.valid), ("test", _TEST_STREAM, sizes.test)):
        _write_tiles((root / name / "images", root / name / "labels"), (seed, stream), count, sizes.tile)
    _write_marker(root, seed, sizes, complete=True)


def draw_field(side: int, rng: np.random.Generator, nuclei: bool = True) -> Tissue:
    """A square field of a random kind of tissue, `side` px, with or without nuclei."""
    plans = _plans()
    tissue_plan, nuclei_plan = plans[int(rng.integers(len(plans)))]
    tissue = draw_tissue((side, side), tissue_plan, rng)
    if nuclei:
        add_nuclei(tissue, nuclei_plan, rng)
    return tissue


def _plans() -> tuple[tuple[TissuePlan, NucleiPlan], ...]:
    """Kinds of tissue: glands, solid sheets, tumour, stroma, mucin, fat."""
    return (
        (TissuePlan(0.35, glands=5, vessels=1, debris=4), NucleiPlan((EPITHELIAL, PALE), 34, 30, 20, 1)),
        (TissuePlan(1.0, vessels=1, glass=0.03), NucleiPlan((EPITHELIAL, PALE), 36, 0, 15, 0)),
        (TissuePlan(0.5, vacuoles=14, debris=4), NucleiPlan((PLEOMORPHIC, EPITHELIAL), 44, 40, 25, 1)),
        (TissuePlan(0.0, vessels=2, debris=6, glass=0.06), NucleiPlan((EPITHELIAL,), 34, 70, 60, 3)),
        (TissuePlan(0.9, glass=0.05, mucin=True), NucleiPlan((PALE,), 40, 10, 15, 1)),
        (TissuePlan(0.7, vacuoles=4, glands=2), NucleiPlan((PLEOMORPHIC,), 40, 30, 15, 2)),
    )


def _write_tiles(folders: tuple[Path, Path], stream: tuple[int, int], count: int, side: int) -> None:
    for index in range(count):
        rng = np.random.default_rng([*stream, index])
        tissue = draw_field(side, rng)
        name = f"{folders[0].parent.name if folders[0].name == 'images' else 'tile'}_{index:02d}.png"
        write_png(folders[0] / name, photograph(tissue, random_stain(rng), rng))
        write_png(folders[1] / name, tissue.inst_map.astype(np.uint16))


def _write_patches(folder: Path, seed: int, sizes: DemoSizes, positive: bool) -> None:
    wanted, written, index = sizes.positives if positive else sizes.negatives, 0, 0
    while written < wanted:
        rng = np.random.default_rng([seed, _PATCH_STREAM if positive else _BARE_STREAM, index])
        tissue = draw_field(_FIELD_PATCHES * sizes.patch, rng, nuclei=positive)
        image = photograph(tissue, random_stain(rng), rng)
        for window, box in _windows(tissue.inst_map, sizes.patch, positive):
            if written < wanted:
                write_png(folder / f"field_{index:03d}__{window}.png", image[box])
                written += 1
        index += 1


def _windows(inst_map: Int32Array, side: int, positive: bool) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Windows of a field that hold at least one whole nucleus (`positive`), or none at all."""
    areas = np.bincount(inst_map.ravel())
    areas[np.concatenate([inst_map[0], inst_map[-1], inst_map[:, 0], inst_map[:, -1]])] = -1  # cut by the field's edge
    corners = np.ndindex(inst_map.shape[0] // side, inst_map.shape[1] // side)
    for window, (i, j) in enumerate(corners):
        box = slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side)
        inside = np.bincount(inst_map[box].ravel(), minlength=len(areas))
        whole = bool(np.any((inside > 0) & (inside == areas) & (np.arange(len(areas)) > 0)))
        if whole if positive else not np.any(inside[1:]):
            yield window, box


def _is_drawn(folder: Path) -> bool:
    """Whether `folder` holds a complete drawing of this version. Raises DatasetError where it holds anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise DatasetError(f"{folder} is a file: give a new or empty folder as --data_dir.")
    try:
        state: dict[str, Any] = json.loads((folder / _MARKER).read_text())
    except FileNotFoundError:
        if any(folder.iterdir()):
            raise DatasetError(f"{folder} holds other files than the demo's: give a new or empty folder.") from None
        return False
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder / _MARKER} cannot be read: remove {folder} and start again.") from error
    if state.get("version") != DEMO_VERSION:
        raise DatasetError(f"{folder} was drawn by another version of the demo: remove it, or give a new folder.")
    return bool(state.get("complete"))


def _write_marker(root: Path, seed: int, sizes: DemoSizes, complete: bool) -> None:
    temporary = root / f".{_MARKER}.{os.getpid()}.tmp"
    state = {"version": DEMO_VERSION, "seed": seed, "sizes": asdict(sizes), "complete": complete}
    temporary.write_text(json.dumps(state, indent=2) + "\n")
    temporary.replace(root / _MARKER)
