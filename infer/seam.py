"""Where a cluster was too large to be held whole: nuclei that two cut-outs found twice."""

from __future__ import annotations

import numpy as np
import shapely

from infer.geoparquet import outlines_of
from infer.journal import CLUSTER, Journal, Key
from infer.nucleus_table import NucleusTable, concatenate, from_bytes
from infer.slide_record import RecordHead
from infer.slide_writers import Level0

SAME = 0.5  # share of the smaller of two nuclei that lies in the other, from which they are one

Point = tuple[float, float]


def found_twice(journal: Journal, heads: dict[Key, RecordHead]) -> set[Point]:
    """Centroids (x, y) of the nuclei to leave out: of two that are one, the smaller."""
    tables = [table for key, head in heads.items() if key.kind == CLUSTER for table in _incomplete(journal, key, head)]
    if not tables:
        return set()
    table = concatenate(tables)
    shapes = outlines_of(table, Level0(1.0, 1.0))
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = (first < second) & ~(table.centroid[first] == table.centroid[second]).all(axis=1)
    first, second = first[pairs], second[pairs]
    areas = shapely.area(shapes)
    common = shapely.area(shapely.intersection(shapes[first], shapes[second]))
    same = common > SAME * np.minimum(areas[first], areas[second])
    smaller = np.where(areas[first] < areas[second], first, second)[same]
    return {(x, y) for x, y in table.centroid[smaller].tolist()}


def _incomplete(journal: Journal, key: Key, head: RecordHead) -> list[NucleusTable]:
    found = []
    for offset, length, _ in head.bands.values():
        table = from_bytes(journal.read(key, head.size + offset, length))
        found.append(table.take(np.flatnonzero(~table.complete)))
    return [table for table in found if len(table)]


def without(table: NucleusTable, left_out: set[Point]) -> NucleusTable:
    """The nuclei whose centroid is none of these, and of equal ones in parted clusters the first."""
    if table.complete.all():
        return table
    seen, kept = set(left_out), []
    for i, (x, y) in enumerate(table.centroid.tolist()):
        if (x, y) not in seen:
            kept.append(i)
        if not table.complete[i]:
            seen.add((x, y))
    return table.take(kept)
