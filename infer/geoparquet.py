"""Nuclei as GeoParquet 1.1: a row each, for millions of them; GeoPandas, DuckDB and QGIS read it.

Outlines are WKB in px of the slide's finest level (no coordinate reference system). The column `bbox` covers them, so
that a reader can skip row groups that lie elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from infer.measurements import MEASURES
from infer.nucleus_table import UNTYPED, NucleusTable, concatenate
from infer.slide_writers import Level0
from infer.type_info import TypeInfo

ROWS = 16384  # of a row group: so many nuclei are held in memory
_BBOX = ("xmin", "ymin", "xmax", "ymax")


class GeoParquetStream:
    """A `NucleusStream`. Row groups are of ROWS nuclei whatever the tables were."""

    def __init__(self, path: Path, level0: Level0, types: TypeInfo, header: Mapping[str, Any]) -> None:
        self._level0, self._types = level0, types
        named = [types.name(i) for i in range(len(types.types))]
        self._names = [name if named.count(name) == 1 else f"{name}, {i}" for i, name in enumerate(named)]
        self._schema = _schema(self._names)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._header = dict(header)
        self._waiting: list[NucleusTable] = []
        self._count, self._next_id = 0, 1
        self._bounds: list[float] = []

    def add(self, table: NucleusTable, first_id: int) -> None:
        """See NucleusStream. Numbers go on from 1, as first_id does."""
        self._waiting.append(table)
        self._count += len(table)
        while self._count >= ROWS:
            self._write(ROWS)

    def close(self) -> None:
        """See NucleusStream."""
        if self._count:
            self._write(self._count)
        self._writer.add_key_value_metadata(
            {"geo": json.dumps(self._geo()), "hovernet_cyclic": json.dumps(self._header)}
        )
        self._writer.close()

    def _write(self, count: int) -> None:
        table = concatenate(self._waiting)
        rows, rest = table.take(np.arange(count)), table.take(np.arange(count, len(table)))
        geometry = outlines_of(rows, self._level0)
        bounds = shapely.bounds(geometry)
        self._widen(bounds)
        columns = self._columns(rows, geometry, bounds)
        self._writer.write_table(pa.Table.from_pydict(columns, schema=self._schema), row_group_size=ROWS)
        self._waiting, self._count = [rest], len(rest)
        self._next_id += count

    def _columns(self, rows: NucleusTable, geometry: Any, bounds: Any) -> dict[str, Any]:
        centroids = self._level0.centres(rows.centroid) + 0.5  # as outlines are: pixel centres at halves
        typed = rows.type_id != UNTYPED
        types = [self._types.name(int(one)) if has else None for one, has in zip(rows.type_id, typed, strict=True)]
        columns: dict[str, Any] = {
            "inst_id": np.arange(self._next_id, self._next_id + len(rows)),
            "geometry": shapely.to_wkb(geometry),
            "bbox": [dict(zip(_BBOX, row, strict=True)) for row in bounds.tolist()],
            "centroid_x": centroids[:, 0],
            "centroid_y": centroids[:, 1],
            "type": types,
            "type_id": pa.array(rows.type_id, pa.int16(), mask=~typed),
            "type_prob": pa.array(rows.type_prob, pa.float64(), mask=~typed),
        }
        columns |= {name: rows.measures[:, i] for i, name in enumerate(MEASURES)}
        return columns | {f"p({name})": rows.type_probs[:, i] for i, name in enumerate(self._names)}

    def _widen(self, bounds: Any) -> None:
        low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
        if self._bounds:
            low, high = np.minimum(low, self._bounds[:2]), np.maximum(high, self._bounds[2:])
        self._bounds = [*low.tolist(), *high.tolist()]

    def _geo(self) -> dict[str, Any]:
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon", "MultiPolygon"],
            "crs": None,
            "edges": "planar",
            "covering": {"bbox": {name: ["bbox", name] for name in _BBOX}},
        }
        if self._bounds:
            column["bbox"] = self._bounds
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _schema(names: list[str]) -> pa.Schema:
    fields = [
        ("inst_id", pa.int64()),
        ("geometry", pa.binary()),
        ("bbox", pa.struct([(name, pa.float64()) for name in _BBOX])),
        ("centroid_x", pa.float64()),
        ("centroid_y", pa.float64()),
        ("type", pa.string()),
        ("type_id", pa.int16()),
        ("type_prob", pa.float64()),
        *((name, pa.float64()) for name in MEASURES),
        *((f"p({name})", pa.float32()) for name in names),
    ]
    return pa.schema(fields)


def outlines_of(table: NucleusTable, level0: Level0) -> Any:
    """shapely geometries (N,): a Polygon each, a MultiPolygon for those in several pieces, in px of level 0."""
    corners = level0.corners(table.corners)
    ring_of = np.repeat(np.arange(len(table.ring_end)), np.diff(table.ring_end, prepend=0))
    polygons = shapely.polygons(shapely.linearrings(corners, indices=ring_of))
    counts = np.diff(table.rings_end, prepend=0)
    owner = np.repeat(np.arange(len(table)), counts)
    geometry = np.empty(len(table), object)
    single = counts == 1
    geometry[single] = polygons[single[owner]]
    for index in np.flatnonzero(~single).tolist():
        geometry[index] = shapely.multipolygons(polygons[owner == index])
    return geometry
