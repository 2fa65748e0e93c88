"""Time all scores of one pair of maps against loops over whole masks, as hover_net's stats_utils.py works.

    python -m benchmarks.metrics_speed [--side 1000] [--repeat 5] [--out metrics_speed.json]

Both ways must give the same numbers, else the exit code is 1. The loops hold a mask for each nucleus: 1 GB by default.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from benchmarks.json_report import write_report
from hovernet_cyclic.core.label_maps import instance_areas
from hovernet_cyclic.core.metrics import score

CELL = 44  # px between nuclei: about 500 on 1000 x 1000 px
Labels = npt.NDArray[np.int32]


class Dense(NamedTuple):
    """Masks uint8 (H, W) of N true and M predicted nuclei; inter and union px, float64 (N, M)."""

    true: list[npt.NDArray[np.uint8]]
    pred: list[npt.NDArray[np.uint8]]
    inter: npt.NDArray[np.float64]
    union: npt.NDArray[np.float64]


def synthetic_pair(side: int, seed: int = 0) -> tuple[Labels, Labels]:
    """A true and a predicted map, int32 (side, side): ellipses on a jittered grid; 1 in 20 is missed, all are off."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    true_map, pred_map = np.zeros((2, side, side), np.int32)
    for inst_id, (top, left) in enumerate(_cells(side), start=1):
        centre = np.array([top, left]) + CELL / 2 + generator.uniform(-5, 5, 2)
        radii = generator.uniform(7, 19, 2)
        _draw(true_map, (rows, columns), centre, radii, inst_id)
        if generator.random() > 0.05:
            _draw(
                pred_map,
                (rows, columns),
                centre + generator.normal(0, 2, 2),
                radii * generator.uniform(0.8, 1.2),
                inst_id,
            )
    return _numbered(true_map), _numbered(pred_map)


def _cells(side: int) -> Iterator[tuple[int, int]]:
    return ((top, left) for top in range(0, side - CELL + 1, CELL) for left in range(0, side - CELL + 1, CELL))


def _draw(inst_map: Labels, grid: Any, centre: npt.NDArray[Any], radii: npt.NDArray[Any], inst_id: int) -> None:
    top, left = np.maximum(centre - radii - 1, 0).astype(int)
    bottom, right = (centre + radii + 2).astype(int)
    part = (slice(top, bottom), slice(left, right))
    inside = ((grid[0][part] - centre[0]) / radii[0]) ** 2 + ((grid[1][part] - centre[1]) / radii[1]) ** 2 <= 1
    inst_map[part][inside] = inst_id


def _numbered(inst_map: Labels) -> Labels:
    """Ids 1..N without gaps, by the plainest means: the loops need them so."""
    return np.unique(inst_map, return_inverse=True)[1].reshape(inst_map.shape).astype(np.int32)


def dense_overlaps(true_map: Labels, pred_map: Labels) -> Dense:
    """Every mask of the whole tile, and the sums over the tile for each pair that meets."""
    true = [(true_map == inst_id).astype(np.uint8) for inst_id in range(1, true_map.max() + 1)]
    pred = [(pred_map == inst_id).astype(np.uint8) for inst_id in range(1, pred_map.max() + 1)]
    inter, union = np.zeros((2, len(true), len(pred)))
    for t, mask in enumerate(true):
        for p in np.unique(pred_map[mask > 0]):
            if p > 0:
                inter[t, p - 1] = (mask * pred[p - 1]).sum()
                union[t, p - 1] = (mask + pred[p - 1]).sum() - inter[t, p - 1]
    return Dense(true, pred, inter, union)


def loop_dice(true_map: Labels, pred_map: Labels) -> dict[str, float]:
    true, pred = (true_map > 0).astype(int), (pred_map > 0).astype(int)
    return {"dice": 2.0 * (true * pred).sum() / (true + pred).sum()}


def loop_dice2(true_map: Labels, pred_map: Labels) -> dict[str, float]:
    dense = dense_overlaps(true_map, pred_map)
    return {"dice2": 2.0 * dense.inter.sum() / (dense.inter + dense.union).sum()}


def loop_aji(true_map: Labels, pred_map: Labels) -> dict[str, float]:
    dense = dense_overlaps(true_map, pred_map)
    iou = dense.inter / (dense.union + 1e-6)
    return {"aji": _aggregated(dense, [(t, int(row.argmax())) for t, row in enumerate(iou) if row.max() > 0])}


def loop_aji_plus(true_map: Labels, pred_map: Labels) -> dict[str, float]:
    dense = dense_overlaps(true_map, pred_map)
    iou = dense.inter / (dense.union + 1e-6)
    pairs = zip(*linear_sum_assignment(-iou), strict=True)
    return {"aji_plus": _aggregated(dense, [pair for pair in pairs if iou[pair] > 0])}


def _aggregated(dense: Dense, pairs: list[tuple[int, int]]) -> float:
    inter, union = (sum(values[pair] for pair in pairs) for values in (dense.inter, dense.union))
    union += sum(mask.sum() for t, mask in enumerate(dense.true) if t not in [pair[0] for pair in pairs])
    union += sum(mask.sum() for p, mask in enumerate(dense.pred) if p not in [pair[1] for pair in pairs])
    return float(inter / union)


def loop_pq(true_map: Labels, pred_map: Labels) -> dict[str, float]:
    dense = dense_overlaps(true_map, pred_map)
    iou = dense.inter / np.maximum(dense.union, 1)
    hits = iou[iou > 0.5]
    dq = len(hits) / (0.5 * len(dense.true) + 0.5 * len(dense.pred))
    sq = hits.sum() / (len(hits) + 1e-6)
    return {"dq": dq, "sq": sq, "pq": dq * sq}


LOOPS = (loop_dice, loop_dice2, loop_aji, loop_aji_plus, loop_pq)


def timed(work: Callable[[], Any], repeat: int) -> tuple[Any, float]:
    """The result and the least of `repeat` wall times, seconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return result, min(times)


def measure(side: int, repeat: int) -> dict[str, Any]:
    """Times in seconds, their ratio and the largest relative difference of the scores."""
    true_map, pred_map = synthetic_pair(side)
    found, table_s = timed(lambda: score(true_map, pred_map).as_dict(), repeat)
    loops, wanted = {}, {}
    for loop in LOOPS:
        values, seconds = timed(lambda loop=loop: loop(true_map, pred_map), min(repeat, 2))  # type: ignore[misc]
        loops[loop.__name__.removeprefix("loop_")] = seconds
        wanted.update(values)
    return {
        "side_px": side,
        "true_nuclei": len(instance_areas(true_map)[0]),
        "pred_nuclei": len(instance_areas(pred_map)[0]),
        "table_all_s": table_s,
        "loops_s": loops,
        "loops_all_s": sum(loops.values()),
        "ratio": sum(loops.values()) / table_s,
        "largest_relative_difference": max(abs(found[name] / value - 1) for name, value in wanted.items()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=1000, help="px of the square tile")
    parser.add_argument("--repeat", type=int, default=5, help="runs of the table; the best counts")
    parser.add_argument("--out", type=Path, default=Path("metrics_speed.json"))
    options = parser.parse_args()
    report = measure(options.side, options.repeat)
    print(f"{report['true_nuclei']} against {report['pred_nuclei']} nuclei on {options.side} x {options.side} px")
    for name, seconds in report["loops_s"].items():
        print(f"  loops, {name:9}{seconds:9.3f} s")
    print(f"  loops, all      {report['loops_all_s']:9.3f} s")
    print(f"  one table, all  {report['table_all_s']:9.3f} s, F1 of detection and IoU included")
    print(f"  ratio           {report['ratio']:9.0f}")
    print(f"  largest relative difference {report['largest_relative_difference']:.1e}")
    write_report(options.out, report)
    return 0 if report["largest_relative_difference"] < 1e-12 else 1


if __name__ == "__main__":
    sys.exit(main())
