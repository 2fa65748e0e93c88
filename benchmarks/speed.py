"""Time the inference engine against hover_net's way of doing it, in one run, on the same tiles.

    python -m benchmarks.speed [--net small fast] [--megapixels 1 4 16] [--tiles 2] [--out speed.json]

Tiles are drawn tissue. Each network (untrained, for its speed does not depend on what it has learnt) is run on them in
full; post-processing then gets maps made from the drawn nuclei, in both ways alike, so that it has its usual work.
`ours` is what `run_infer.py tile` does, from PNG files to all result files, with everything overlapping. `reference` is
benchmarks/reference_pipeline.py with the ResNet-50 network in float32, one step after the other, and the same files
written; of its windows --reference_windows are computed and the time of all is estimated from them. `floor` is the
network's multiply-adds on each pixel once, at the rate at which this machine multiplies large matrices.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import reference_pipeline as reference
from benchmarks.json_report import write_report
from dataloader.datasets.demo import draw_field
from dataloader.datasets.demo_stain import photograph, random_stain
from dataloader.images import read_rgb, write_png
from hovernet_cyclic.core.label_maps import extract_nuclei
from hovernet_cyclic.core.types import Pixels, RawMaps, SegmentedTile, whole_image
from infer.base import NetworkSegmenter, usual_precision
from infer.finish import Finisher, TileJob
from infer.tile import Workers, segment_folder
from infer.type_info import default_type_info
from infer.writers import OutputFolder
from models.devices import choose_device, keep_freed_memory
from models.hovernet.net_desc import HoVerNet
from models.hovernet.post_proc import segment
from models.hovernet.targets import hover_targets

FIELD = 500  # px a side of a drawn field; tiles are mosaics of them
MPP = 0.25
SAMPLE = 1024  # px a side of the input whose multiply-adds are counted


class Options(NamedTuple):
    nets: tuple[str, ...]
    megapixels: tuple[int, ...]
    tiles: int
    precision: str
    reference_windows: int
    batch_size: int
    workers: int


def mosaic(side: int, seed: int = 0) -> tuple[Any, RawMaps]:
    """A tile of drawn tissue, uint8 (side, side, 3), and the maps of a network that sees its nuclei, a little noisy."""
    rng = np.random.default_rng(seed)
    fields = []
    for _ in range(4):
        tissue = draw_field(FIELD, rng)
        fields.append((photograph(tissue, random_stain(rng), rng), tissue.inst_map))
    image, inst_map = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.int32)
    cells = [(top, left) for top in range(0, side, FIELD) for left in range(0, side, FIELD)]
    for number, (top, left) in enumerate(cells):
        picture, drawn = fields[number % 4]
        part = (slice(top, top + FIELD), slice(left, left + FIELD))
        shape = image[part].shape[:2]
        image[part] = picture[: shape[0], : shape[1]]
        drawn = drawn[: shape[0], : shape[1]]
        inst_map[part] = np.where(drawn > 0, drawn + inst_map.max(initial=0), 0)
    targets = hover_targets(inst_map, inst_map.shape)
    noise = cv2.GaussianBlur(rng.normal(0, 0.4, (side, side, 3)).astype(np.float32), (0, 0), 2)
    np_prob = cv2.GaussianBlur(targets.np_map.astype(np.float32), (0, 0), 1) + noise[..., 0]
    hv_map = cv2.GaussianBlur(targets.hv_map, (0, 0), 1) + noise[..., 1:]
    return image, RawMaps(np_prob.clip(0, 1).astype(np.float32), hv_map.astype(np.float32))


class Drawn:
    """A segmenter that does all the network's work and then answers with the maps of the drawn nuclei."""

    def __init__(self, segmenter: NetworkSegmenter, raw: RawMaps) -> None:
        self._segmenter, self._raw = segmenter, raw

    def begin(self, pixels: Pixels) -> Callable[[], RawMaps]:
        wait = self._segmenter.begin(pixels)

        def answer() -> RawMaps:
            wait()
            return self._raw

        return answer


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin


def network(mode: str) -> HoVerNet:
    torch.manual_seed(0)
    return HoVerNet(mode).eval()


def files_of(folder: Path, megapixels: int, tiles: int) -> tuple[list[Path], RawMaps]:
    side = round((megapixels * 1e6) ** 0.5)
    image, raw = mosaic(side)
    paths = [folder / "in" / f"tile{number}.png" for number in range(tiles)]
    for path in paths:
        write_png(path, image)
    return paths, raw


def time_ours(mode: str, megapixels: int, options: Options) -> dict[str, Any]:
    """Seconds a tile: all together, and each stage by itself."""
    keep_freed_memory()  # as run_infer.py does
    device = choose_device(None, options.precision)
    if options.precision == "auto":
        device = usual_precision(mode, device)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        paths, raw = files_of(Path(name), megapixels, options.tiles)
        segmenter = NetworkSegmenter(network(mode), mode, device.torch_device, None, device.dtype, frozen=True)
        outputs = OutputFolder(Path(name) / "out", default_type_info(None))
        finisher = Finisher(outputs, "local", MPP)
        image = read_rgb(paths[0])
        segmenter.raw_maps(image[: image.shape[0] // 2])  # kernels are made at the first call
        with clock(seconds, "network"):
            segmenter.raw_maps(image)
        with clock(seconds, "read"):
            read_rgb(paths[0])
        with clock(seconds, "post_proc"):
            nuclei = extract_nuclei(inst_map := segment(raw, "local"))
        with clock(seconds, "write"):
            outputs.write(SegmentedTile("warm", inst_map, nuclei, MPP), image, raw)
        with clock(seconds, "all"):
            summary = segment_folder([Drawn(segmenter, raw)], paths, finisher, Workers(1, options.workers), quiet=True)
        seconds["all"] /= options.tiles
    assert summary.done == options.tiles, summary.failures
    height, width = image.shape[:2]
    return {
        "pipeline": "ours",
        "net": mode,
        "precision": str(device.dtype).removeprefix("torch."),
        "megapixels": megapixels,
        "cell": segmenter.cell((height, width)),
        "nuclei": len(nuclei),
        "seconds": seconds,
        "peak_rss_mib": peak_mib(),
    }


def time_reference(megapixels: int, options: Options) -> dict[str, Any]:
    """Seconds a tile of the reference's pipeline; its network's from some of its windows."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        paths, raw = files_of(Path(name), megapixels, 1)
        net = network("fast")
        with clock(seconds, "read"):
            image = read_rgb(paths[0])
        reference.network_maps(net, image, 1, 1)  # warm
        begin = time.perf_counter()
        _, done, windows = reference.network_maps(net, image, options.batch_size, options.reference_windows)
        seconds["network"] = (time.perf_counter() - begin) * windows / done
        with clock(seconds, "post_proc"):
            found = reference.describe(reference.instances(np.dstack([raw.np_prob, raw.hv_map])))
        job = TileJob(paths[0], image, raw, whole_image(image).box)
        inst_map = segment(raw, "hovernet")
        tile = SegmentedTile("tile", inst_map, extract_nuclei(inst_map), MPP)
        with clock(seconds, "write"):
            OutputFolder(Path(name) / "out", default_type_info(None)).write(tile, job.image, raw)
    seconds["all"] = sum(seconds.values())
    return {
        "pipeline": "reference",
        "net": "fast",
        "precision": "float32",
        "megapixels": megapixels,
        "windows": windows,
        "windows_timed": done,
        "nuclei": len(found),
        "seconds": seconds,
        "peak_rss_mib": peak_mib(),
    }


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def floor(mode: str, dtype: torch.dtype) -> dict[str, float]:
    """The network's GFLOP per megapixel, each pixel once, and the GFLOP/s of this machine's matrix product."""
    with torch.device("meta"):
        net = HoVerNet(mode).eval()
        images = [torch.empty(1, 3, side, side) for side in (SAMPLE, 2 * SAMPLE)]
    counts = []
    for batch in images:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(batch)
        counts.append(counter.get_total_flops())
    per_px = (counts[1] - counts[0]) / (3 * SAMPLE**2)  # of pixels far from the border of the input
    return {"gflop_per_megapixel": per_px / 1e3, "gflop_per_s": matrix_rate(dtype)}


def matrix_rate(dtype: torch.dtype, side: int = 2048, repeat: int = 5) -> float:
    """GFLOP/s of a product of two square matrices; the best of some."""
    left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeat):
        begin = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best / 1e9


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of work in a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def measure(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    rows = []
    for megapixels in options.megapixels:
        base = apart(time_reference, megapixels, options)
        rows.append(base)
        for mode in options.nets:
            row = apart(time_ours, mode, megapixels, options)
            least = apart(floor, mode, getattr(torch, row["precision"]))
            row["floor"] = least | {"seconds": megapixels * least["gflop_per_megapixel"] / least["gflop_per_s"]}
            row["ratio"] = {
                stage: base["seconds"][stage] / row["seconds"][stage] for stage in ("all", "network", "post_proc")
            }
            rows.append(row)
        for row in rows[-1 - len(options.nets) :]:
            say(line(row))
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return {"machine": machine, "options": options._asdict(), "rows": rows}


HEADER = (
    "| pipeline, network | Mpx | nuclei | s a tile | tiles/s | mm2/s | read | network | post | write | peak MiB "
    "| floor s | times floor | network times floor | ratio | ratio post |\n" + "|---" * 16 + "|"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table. Stages: seconds, each by itself."""
    seconds, all_s = row["seconds"], row["seconds"]["all"]
    mm2 = row["megapixels"] * MPP**2 / all_s
    cells = [f"{row['pipeline']}, {row['net']} {row['precision']}", str(row["megapixels"]), str(row["nuclei"])]
    cells += [f"{all_s:.2f}", f"{1 / all_s:.3f}", f"{mm2:.4f}"]
    cells += [f"{seconds[stage]:.3f}" for stage in ("read", "network", "post_proc", "write")]
    cells.append(f"{row['peak_rss_mib']:.0f}")
    if "floor" in row:
        least = row["floor"]["seconds"]
        cells += [f"{least:.2f}", f"{all_s / least:.2f}", f"{seconds['network'] / least:.2f}"]
        cells += [f"{row['ratio']['all']:.1f}", f"{row['ratio']['post_proc']:.1f}"]
    else:
        cells += ["", "", "", "1", "1"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", nargs="+", default=["small", "fast"], help="networks of ours")
    parser.add_argument("--megapixels", nargs="+", type=int, default=[1, 4, 16], help="sizes of the tiles")
    parser.add_argument("--tiles", type=int, default=2, help="tiles in the folder; time is per tile")
    parser.add_argument("--precision", default="auto", help="of ours: auto, fp32 or bf16")
    parser.add_argument("--reference_windows", type=int, default=6, help="windows of the reference that are timed")
    parser.add_argument("--batch_size", type=int, default=2, help="of the reference")
    parser.add_argument("--workers", type=int, default=0, help="processes of ours that post-process")
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    given = parser.parse_args()
    options = Options(
        tuple(given.net),
        tuple(given.megapixels),
        given.tiles,
        given.precision,
        given.reference_windows,
        given.batch_size,
        given.workers,
    )
    print(HEADER)
    report = measure(options, partial(print, flush=True))
    write_report(given.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
