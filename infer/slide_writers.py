"""The nuclei of a slide as text, written as they come: hover_net's JSON, and GeoJSON for QuPath.

Coordinates are px of the slide's finest level, x to the right, y down. In JSON pixel centres lie at integers, as in
hover_net's files; in GeoJSON pixel (column c, row r) is the square from (c, r) to (c + 1, r + 1), as in QuPath.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from infer.geojson import UNTYPED_NAME
from infer.measurements import MEASURES
from infer.nucleus_table import UNTYPED, NucleusTable
from infer.type_info import TypeInfo

DIGITS = 2  # of a coordinate, px of level 0
MEASURE_DIGITS = 4


class Level0(NamedTuple):
    """px of level 0 per px that nuclei are given in."""

    across: float
    down: float

    def centres(self, points: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Points (..., 2) x, y, pixel centres at integers."""
        return np.asarray((points + 0.5) * np.array(self) - 0.5)

    def corners(self, points: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Points (..., 2) x, y of corners of pixels."""
        return np.asarray(points * np.array(self))


class NucleusStream(Protocol):
    """A file that grows nucleus by nucleus."""

    def add(self, table: NucleusTable, first_id: int) -> None:
        """Write the nuclei of a table, numbered from first_id on."""

    def close(self) -> None:
        """Write the end."""


class JsonStream:
    """hover_net's JSON. Beside its `mag` and `nuc` stand `mpp` (um/px of the coordinates) and `coordinates`, in words.

    Its box is [[row, column], [row, column]], half-open, as in tile mode: hover_net's slide mode adds (x, y) to it as
    if it were a point, which is not copied here.
    """

    def __init__(self, path: Path, level0: Level0, header: Mapping[str, Any]) -> None:
        self._stream = path.open("w", encoding="utf-8", newline="\n")
        self._level0, self._comma = level0, ""
        self._stream.write(json.dumps(header)[:-1] + ', "nuc": {')

    def add(self, table: NucleusTable, first_id: int) -> None:
        """See NucleusStream."""
        boxes = _level0_boxes(table, self._level0)
        centroids = self._level0.centres(table.centroid).tolist()
        contours = _plain(self._level0.centres(table.points))
        for index in range(len(table)):
            begin, end = (int(table.point_end[index - 1]) if index else 0), int(table.point_end[index])
            nucleus = {"bbox": boxes[index], "centroid": centroids[index], "contour": contours[begin:end]}
            nucleus |= _typed(table, index)
            self._stream.write(f'{self._comma}\n"{first_id + index}": {json.dumps(nucleus)}')
            self._comma = ","

    def close(self) -> None:
        """See NucleusStream."""
        self._stream.write("\n}}\n")
        self._stream.close()


def _typed(table: NucleusTable, index: int) -> dict[str, Any]:
    type_id = int(table.type_id[index])
    if type_id == UNTYPED:
        return {"type_prob": None, "type": None}
    typed: dict[str, Any] = {"type_prob": float(table.type_prob[index]), "type": type_id}
    if table.type_probs.shape[1]:
        typed["type_probs"] = [round(float(prob), 6) for prob in table.type_probs[index]]
    return typed


def _level0_boxes(table: NucleusTable, level0: Level0) -> list[list[list[int]]]:
    """[[top, left], [bottom, right]], half-open, round each nucleus."""
    low = np.floor(table.bbox[:, :2] * np.array([level0.down, level0.across]) + 1e-6).astype(int)
    high = np.ceil(table.bbox[:, 2:] * np.array([level0.down, level0.across]) - 1e-6).astype(int)
    return [list(pair) for pair in zip(low.tolist(), high.tolist(), strict=True)]


def _plain(points: npt.NDArray[np.float64]) -> list[Any]:
    """Coordinates for a text file: whole numbers where all are, as where no scale lies between."""
    rounded = np.round(points, DIGITS)
    whole_numbers = np.array_equal(rounded, np.round(rounded))
    return list((rounded.astype(np.int64) if whole_numbers else rounded).tolist())


class GeoJsonStream:
    """A FeatureCollection of detections, one a line, each with its class and MEASURES, as QuPath 0.5 reads it."""

    def __init__(self, path: Path, level0: Level0, types: TypeInfo, header: Mapping[str, Any]) -> None:
        self._stream = path.open("w", encoding="utf-8", newline="\n")
        self._level0, self._types, self._comma = level0, types, ""
        head = json.dumps({"type": "FeatureCollection", "hovernet_cyclic": dict(header)}, ensure_ascii=False)
        self._stream.write(head[:-1] + ', "features": [')

    def add(self, table: NucleusTable, first_id: int) -> None:
        """See NucleusStream."""
        for index in range(len(table)):
            feature = {
                "type": "Feature",
                "geometry": _geometry(table, index, self._level0),
                "properties": self._properties(table, index, first_id + index),
            }
            self._stream.write(f"{self._comma}\n{json.dumps(feature, ensure_ascii=False)}")
            self._comma = ","

    def _properties(self, table: NucleusTable, index: int, inst_id: int) -> dict[str, Any]:
        type_id = None if table.type_id[index] == UNTYPED else int(table.type_id[index])
        name = UNTYPED_NAME if type_id is None else self._types.name(type_id)
        return {
            "objectType": "detection",
            "classification": {"name": name, "color": list(self._types.colour(type_id))},
            "measurements": {"inst_id": inst_id, **measurements(table, index, self._types)},
        }

    def close(self) -> None:
        """See NucleusStream."""
        self._stream.write("\n]}\n")
        self._stream.close()


def measurements(table: NucleusTable, index: int, types: TypeInfo) -> dict[str, float]:
    """MEASURES of a nucleus and, where there are types, type_prob and the probability of each."""
    values = {
        name: round(float(value), MEASURE_DIGITS) for name, value in zip(MEASURES, table.measures[index], strict=True)
    }
    if table.type_id[index] != UNTYPED:
        values["type_prob"] = round(float(table.type_prob[index]), 6)
    probs = table.type_probs[index]
    return {**values, **{f"p({types.name(i)})": round(float(prob), 6) for i, prob in enumerate(probs)}}


def _geometry(table: NucleusTable, index: int, level0: Level0) -> dict[str, Any]:
    """A Polygon; a MultiPolygon where the nucleus is in pieces that touch at corners at most."""
    rings = [_plain(level0.corners(ring)) for ring in table.rings(index)]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings}
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}
