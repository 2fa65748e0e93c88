"""Slides of any size with known nuclei: are they found, how much memory does it take, how fast is it.

    python -m benchmarks.slides make --side 20000 slide.ome.tif
    python -m benchmarks.slides check slide.ome.tif --out results            a threshold in place of the network
    python -m benchmarks.slides check slide.ome.tif --out results --model_path net.tar

`make` writes a pyramidal OME-TIFF tile by tile. `check` segments it in a process of its own, whose peak memory it
reports, and compares what was found with what was drawn: counts, positions, doubles. Exit code 1 where they differ
(with a threshold: a network is not expected to find all).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from scipy.spatial import cKDTree

from hovernet_cyclic.core.types import Box, Pixels, RawMaps, UInt8Array

CELL = 56  # px: one nucleus in each, with room between
MPP = 0.25
TILE = 512
STEPS = (4, 16)  # of the coarser levels
GLASS, TISSUE, NUCLEUS = (243, 241, 244), (226, 178, 206), (108, 72, 140)
FRACTION_BITS = 6
Points = npt.NDArray[np.float64]


def islands(side: int, share: float) -> tuple[Points, float]:
    """Centres (N, 2) x, y and the radius, px, of discs of tissue on a square slide, of about this share of it."""
    count = max(1, round(side / 5000)) ** 2
    per_side = round(count**0.5)
    step = side / per_side
    middles = (np.arange(per_side) + 0.5) * step
    centres = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
    return centres, min(0.45, (share / np.pi) ** 0.5) * step


def nuclei_in(box: Box, side: int, share: float, seed: int) -> npt.NDArray[np.float64]:
    """float64 (N, 5): x, y of the centre, two radii px, angle in degrees, of the nuclei that reach into a box."""
    rows = np.arange(max(0, box.top // CELL - 1), min(side // CELL, -(-box.bottom // CELL) + 1))
    columns = np.arange(max(0, box.left // CELL - 1), min(side // CELL, -(-box.right // CELL) + 1))
    cell_rows, cell_columns = (values.ravel() for values in np.meshgrid(rows, columns, indexing="ij"))
    random = _hashed(cell_rows.astype(np.uint64), cell_columns.astype(np.uint64), seed)
    x = (cell_columns + 0.5) * CELL + 12 * (random[0] - 0.5)
    y = (cell_rows + 0.5) * CELL + 12 * (random[1] - 0.5)
    found = np.stack([x, y, 7 + 6 * random[2], 7 + 6 * random[3], 180 * random[4]], axis=1)
    centres, radius = islands(side, share)
    # Well inside: whether one on the tissue's border counts is not what is asked here.
    inside = cKDTree(centres).query(found[:, :2])[0] < radius - 150
    return found[inside]


def _hashed(rows: npt.NDArray[np.uint64], columns: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.float64]:
    """float64 (5, N) in [0, 1): the same for a cell whatever is asked with it (SplitMix64)."""
    numbers = []
    with np.errstate(over="ignore"):
        state = rows * np.uint64(0x9E3779B97F4A7C15) ^ columns * np.uint64(0xC2B2AE3D27D4EB4F) ^ np.uint64(seed)
        for _ in range(5):
            state = state + np.uint64(0x9E3779B97F4A7C15)
            mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            numbers.append((mixed ^ (mixed >> np.uint64(31))).astype(np.float64) / 2.0**64)
    return np.array(numbers)


def draw(box: Box, side: int, share: float, seed: int) -> UInt8Array:
    """uint8 (H, W, 3) RGB of a box of the slide."""
    image = np.empty((box.height, box.width, 3), np.uint8)
    image[:] = GLASS
    centres, radius = islands(side, share)
    scale = 1 << FRACTION_BITS
    for x, y in centres:
        if abs(x - (box.left + box.right) / 2) < radius + box.width and abs(y - (box.top + box.bottom) / 2) < (
            radius + box.height
        ):
            centre = (round((x - box.left) * scale), round((y - box.top) * scale))
            cv2.circle(image, centre, round(radius * scale), TISSUE, cv2.FILLED, cv2.LINE_8, FRACTION_BITS)
    for x, y, first, second, angle in nuclei_in(box, side, share, seed):
        centre = (round((x - box.left) * scale), round((y - box.top) * scale))
        axes = (round(first * scale), round(second * scale))
        cv2.ellipse(image, centre, axes, angle, 0, 360, NUCLEUS, cv2.FILLED, cv2.LINE_AA, FRACTION_BITS)
    return image


def make(path: Path, side: int, share: float = 0.5, seed: int = 0, compression: str = "jpeg") -> None:
    """Write the slide, `side` px square, with coarser levels of a quarter and a sixteenth."""
    coarser = [np.empty((side // step, side // step, 3), np.uint8) for step in STEPS]
    about = {"side": side, "share": share, "seed": seed}
    metadata = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP, "Name": json.dumps(about)}
    options: dict[str, Any] = {"photometric": "rgb", "tile": (TILE, TILE), "compression": compression}
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        tiles = _tiles(side, share, seed, coarser[0])
        file.write(tiles, shape=(side, side, 3), dtype=np.uint8, subifds=len(STEPS), metadata=metadata, **options)
        coarser[1][:] = cv2.resize(coarser[0], coarser[1].shape[1::-1], interpolation=cv2.INTER_AREA)
        for level in coarser:
            file.write(level, subfiletype=1, **options)


def _tiles(side: int, share: float, seed: int, coarser: UInt8Array) -> Iterator[UInt8Array]:
    small = TILE // STEPS[0]
    for top in range(0, side, TILE):
        for left in range(0, side, TILE):
            tile = draw(Box(top, left, top + TILE, left + TILE), side, share, seed)
            place = coarser[top // STEPS[0] : top // STEPS[0] + small, left // STEPS[0] : left // STEPS[0] + small]
            place[:] = cv2.resize(tile, (small, small), interpolation=cv2.INTER_AREA)[
                : place.shape[0], : place.shape[1]
            ]
            yield tile


class Threshold:
    """In place of a network: what is darker than between tissue and nucleus is a nucleus, to be told apart by gaps."""

    margin = 0

    def cell(self, whole: tuple[int, int]) -> tuple[int, int]:
        """See NetworkSegmenter."""
        return 512, 512

    def raw_maps_of(self, pixels: Pixels) -> RawMaps:
        """See NetworkSegmenter."""
        box, wanted = pixels.box, pixels.wanted
        image = pixels.image[
            wanted.top - box.top : wanted.bottom - box.top, wanted.left - box.left : wanted.right - box.left
        ]
        green = image[..., 1].astype(np.float32)
        middle = (TISSUE[1] + NUCLEUS[1]) / 2
        return RawMaps(np.clip(0.5 + (middle - green) / 255, 0, 1), np.zeros((*green.shape, 2), np.float32))

    def begin(self, pixels: Pixels) -> Any:
        """See NetworkSegmenter."""
        return lambda: self.raw_maps_of(pixels)


def compare(found: Points, true: Points) -> dict[str, Any]:
    """Counts and distances (px) between found and true centroids (N, 2); doubles: true ones with two within 5 px."""
    distances, nearest = cKDTree(true).query(found) if len(found) else (np.zeros(0), np.zeros(0, int))
    near = distances < 5
    _, counts = np.unique(nearest[near], return_counts=True)
    return {
        "true": len(true),
        "found": len(found),
        "missed": len(true) - len(counts),
        "extra": int((~near).sum()),
        "doubles": int((counts > 1).sum()),
        "largest_distance_px": float(distances[near].max()) if near.any() else 0.0,
    }


def truth(path: Path) -> Points:
    """(N, 2) x, y of all nuclei of a slide that `make` wrote, pixel centres at integers."""
    with tifffile.TiffFile(path) as file:
        about = json.loads(tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Name"])
    side = about["side"]
    return nuclei_in(Box(0, 0, side, side), side, about["share"], about["seed"])[:, :2]


def centroids(parquet: Path) -> Points:
    """(N, 2) x, y, pixel centres at integers, of the nuclei in a GeoParquet file."""
    import pyarrow.parquet as pq

    table = pq.read_table(parquet, columns=["centroid_x", "centroid_y"])
    return np.stack([table["centroid_x"].to_numpy(), table["centroid_y"].to_numpy()], axis=1) - 0.5


def segment_with_threshold(slide: str, out: str, window: int) -> None:
    """As run_infer.py wsi, with a threshold in place of the network."""
    from infer.slide_outputs import SlideFolder
    from infer.slide_plan import SlideRequest
    from infer.slides import SlideSettings, list_slides, segment_and_report
    from infer.type_info import default_type_info

    root = Path(out)
    outputs = SlideFolder(root, default_type_info(None))
    settings = SlideSettings(SlideRequest(MPP, window=window), outputs, root / ".journal", {"threshold": 1})
    segment_and_report(list_slides(slide).slides, [Threshold()], settings)


def measured(command: list[str]) -> dict[str, float]:
    """Run a command; its seconds and the peak memory (MiB) of it and its processes together."""
    begin = time.monotonic()
    process = subprocess.Popen(command)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)
    return {"seconds": round(time.monotonic() - begin, 1), "peak_mib": round(peak)}


def _resident(pid: int) -> float:
    """Resident memory of a process and those that it started, MiB: of Linux' /proc; 0 where there is none.

    What processes share is counted in each.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        started = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return 0.0
    held = [line for line in status.splitlines() if line.startswith("VmRSS")]
    own = int(held[0].split()[1]) / 1024 if held else 0.0
    return own + sum(_resident(child) for child in started)


def check(slide: Path, out: Path, model: str | None, window: int, workers: int) -> dict[str, Any]:
    """Segment a slide that `make` wrote, and compare."""
    if model is None:
        code = f"from benchmarks.slides import *; segment_with_threshold({str(slide)!r}, {str(out)!r}, {window})"
        command = [sys.executable, "-c", code]
    else:
        command = [sys.executable, "run_infer.py", f"--model_path={model}", f"--nr_post_proc_workers={workers}", "wsi"]
        command += [f"--input_dir={slide}", f"--output_dir={out}", f"--tile_shape={window}"]
    resources = measured(command)
    name = slide.name.removesuffix(".ome.tif")
    return {**compare(centroids(out / "parquet" / f"{name}.parquet"), truth(slide)), **resources}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    maker = modes.add_parser("make")
    maker.add_argument("slide", type=Path)
    maker.add_argument("--side", type=int, default=20000)
    maker.add_argument("--share", type=float, default=0.5, help="of the slide that is tissue")
    checker = modes.add_parser("check")
    checker.add_argument("slide", type=Path)
    checker.add_argument("--out", type=Path, required=True)
    checker.add_argument("--model_path")
    checker.add_argument("--window", type=int, default=2048)
    checker.add_argument("--workers", type=int, default=0, help="processes that post-process, with a network")
    arguments = parser.parse_args()
    if arguments.mode == "make":
        make(arguments.slide, arguments.side, arguments.share)
        return 0
    figures = check(arguments.slide, arguments.out, arguments.model_path, arguments.window, arguments.workers)
    print(json.dumps(figures, indent=1))
    exact = figures["missed"] == figures["extra"] == figures["doubles"] == 0 and figures["largest_distance_px"] <= 1
    return 0 if exact or arguments.model_path else 1


if __name__ == "__main__":
    sys.exit(main())
