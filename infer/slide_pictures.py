"""A slide at a glance: its nuclei on a thumbnail, how dense they lie, and what was taken for tissue."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dataloader.slides import SlideView
from dataloader.tissue import read_coarsely
from hovernet_cyclic.core.types import BoolArray, UInt8Array
from infer.nucleus_table import UNTYPED, NucleusTable
from infer.slide_plan import SlidePlan
from infer.type_info import TypeInfo

LONGEST = 2048  # px of a thumbnail's longer side
COARSEST = 8.0  # um/px
DENSITY_UM = 50.0  # side of a square in which nuclei are counted
_TISSUE_LINE = (0, 120, 255)
_LEGEND = 48  # px of height


def thumbnail_mpp(view: SlideView) -> float:
    """um/px of the thumbnail: fine enough to show nuclei of a small slide, no finer than the network saw."""
    longest_um = max(view.shape[0] * view.mpp[0], view.shape[1] * view.mpp[1])
    return max(min(longest_um / LONGEST, COARSEST), *view.mpp)


class Pictures:
    """A `NucleusStream` that draws. Keeps a thumbnail and a coarse count in memory, whatever the slide."""

    def __init__(self, plan: SlidePlan, types: TypeInfo, overlay: Path, density: Path) -> None:
        self._types, self._overlay_path, self._density_path = types, overlay, density
        self.thumbnail = read_coarsely(plan.reader, plan.scale, thumbnail_mpp(plan.view))
        self._drawn = self.thumbnail.copy()
        self._view = plan.view
        height, width = plan.view.shape
        self._scale = np.array([self.thumbnail.shape[1] / width, self.thumbnail.shape[0] / height])
        self._square = np.array([DENSITY_UM / plan.view.mpp[1], DENSITY_UM / plan.view.mpp[0]])
        self._counts = np.zeros((int(height / self._square[1]) + 1, int(width / self._square[0]) + 1), np.int64)

    def add(self, table: NucleusTable, first_id: int) -> None:
        """See NucleusStream."""
        if not len(table):
            return
        columns, rows = ((table.centroid + 0.5) / self._square).astype(int).T
        np.add.at(self._counts, (rows, columns), 1)
        points = (table.points + 0.5) * self._scale - 0.5
        sixteenths = np.round(points * 16).astype(np.int32)
        for index, end in enumerate(table.point_end.tolist()):
            begin = int(table.point_end[index - 1]) if index else 0
            type_id = None if table.type_id[index] == UNTYPED else int(table.type_id[index])
            cv2.polylines(self._drawn, [sixteenths[begin:end]], True, self._types.colour(type_id), 1, cv2.LINE_8, 4)

    def close(self) -> None:
        """See NucleusStream."""
        self._overlay_path.write_bytes(png(self._drawn))
        picture = density_picture(self._counts, self._square * self._scale, self.thumbnail)
        self._density_path.write_bytes(png(picture))


def density_picture(counts: npt.NDArray[np.int64], side: npt.NDArray[np.float64], thumbnail: UInt8Array) -> UInt8Array:
    """uint8 (H + legend, W, 3) RGB: nuclei per mm2 in squares of DENSITY_UM, over the grey thumbnail.

    counts: int (h, w), nuclei a square. side: (x, y) px of the thumbnail per square. The scale ends at the 99th
    percentile of the squares with nuclei.
    """
    per_mm2 = counts / (DENSITY_UM / 1000) ** 2
    top = float(np.percentile(per_mm2[per_mm2 > 0], 99)) if (per_mm2 > 0).any() else 1.0
    levels = np.clip(np.ceil(per_mm2 / top * 255), 0, 255).astype(np.uint8)
    height, width = thumbnail.shape[:2]
    rows = ((np.arange(height) + 0.5) / side[1]).astype(int).clip(0, counts.shape[0] - 1)
    columns = ((np.arange(width) + 0.5) / side[0]).astype(int).clip(0, counts.shape[1] - 1)
    grown = levels[np.ix_(rows, columns)]
    colours = cv2.applyColorMap(grown, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    seen = np.where((grown > 0)[..., None], 0.75 * colours + 0.25 * grey, 0.5 * grey + 127)
    return np.concatenate([seen.astype(np.uint8), _legend(width, top)])


def _legend(width: int, top: float) -> UInt8Array:
    legend = np.full((_LEGEND, width, 3), 255, np.uint8)
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_VIRIDIS)[..., ::-1]
    bar = min(256, width)
    legend[4:16, :bar] = cv2.resize(np.ascontiguousarray(ramp), (bar, 12))
    cv2.putText(
        legend, f"0 to {top:.0f} nuclei per mm2", (0, 36), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA
    )
    return legend


def tissue_picture(thumbnail: UInt8Array, mask: BoolArray) -> UInt8Array:
    """uint8 (H, W, 3) RGB: the thumbnail, glass paled and the border of the tissue drawn."""
    height, width = thumbnail.shape[:2]
    grown = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    drawn = np.where(grown[..., None] > 0, thumbnail, thumbnail // 2 + 127).astype(np.uint8)
    contours, _ = cv2.findContours(grown, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(drawn, contours, -1, _TISSUE_LINE, max(1, max(height, width) // 1000))
    return drawn


def png(image: UInt8Array) -> bytes:
    """A PNG file of uint8 (H, W, 3) RGB or (H, W)."""
    return cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()
