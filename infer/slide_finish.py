"""From the raw maps of a tile of a slide to its record: what a post-processing worker does. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hovernet_cyclic.core.geometry import contains_point, overlap, shift, within
from hovernet_cyclic.core.label_maps import extract_nuclei
from hovernet_cyclic.core.types import BoolArray, Box, Int32Array
from infer.clusters import Clusters, find_clusters, first_pixel
from infer.finish import TileJob
from infer.geojson import outlines
from infer.journal import Key
from infer.measurements import Mpp, Outline, centroid, measure
from infer.nucleus_table import Described, NucleusTable, shifted
from infer.slide_record import OpenCluster, pack
from models.hovernet.post_proc import SMALLEST_AREA, segment


class SlideKey(NamedTuple):
    """What a job is for.

    slide: its name. key: of its record. owns: a nucleus counts if its centroid is in one of these.
    seeds: (row, column) of a pixel of each cluster that is asked for; empty for all that are whole.
    """

    slide: str
    key: Key
    owns: tuple[Box, ...]
    seeds: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        own = self.owns[0] if self.owns else Box(0, 0, 0, 0)
        return f"{self.slide}, rows {own.top} to {own.bottom}, columns {own.left} to {own.right}"


@dataclass(frozen=True)
class SlideFinisher:
    """Answers a TileJob (key: SlideKey) with the content of its record. Boxes in px of the slide at the working mpp.

    whole: (H, W) of the slide. mpp: um/px (down, across). nr_types: T, 0 for none. region: where nuclei count at all.
    smallest: px, see post_proc.segment.
    """

    whole: tuple[int, int]
    mpp: Mpp
    nr_types: int
    region: Box
    smallest: int = SMALLEST_AREA

    def __call__(self, job: TileJob) -> bytes:
        """The record: nuclei of clusters that are whole, and the clusters that are not."""
        asked = job.key
        assert isinstance(asked, SlideKey)
        clusters = find_clusters(job.raw.np_prob, job.box, self.whole)
        near = self._near(clusters, job.box, asked.owns)
        if asked.seeds:
            chosen = np.zeros(len(near), np.bool_)
            for row, column in asked.seeds:
                chosen[clusters.numbers[row - job.box.top, column - job.box.left]] = True
            return pack(self._table(job, asked, clusters, chosen & near))
        table = self._table(job, asked, clusters, near & ~clusters.is_open)
        return pack(table, self._still_open(job, asked, clusters, near & clusters.is_open))

    def _near(self, clusters: Clusters, box: Box, owns: tuple[Box, ...]) -> BoolArray:
        """By number: whether a nucleus of the cluster may have its centroid in one of the boxes."""
        inside = [any(overlap(shift(one, box.top, box.left), own) for own in owns) for one in clusters.boxes]
        near = np.array(inside, np.bool_)
        near[0] = False
        return near

    def _still_open(
        self, job: TileJob, asked: SlideKey, clusters: Clusters, chosen: BoolArray
    ) -> tuple[OpenCluster, ...]:
        found = []
        for number in np.flatnonzero(chosen).tolist():
            row, column = first_pixel(clusters, number, job.raw.np_prob)
            seen = shift(clusters.boxes[number], job.box.top, job.box.left)
            found.append(OpenCluster((row + job.box.top, column + job.box.left), seen, asked.owns[0]))
        return tuple(found)

    def _table(self, job: TileJob, asked: SlideKey, clusters: Clusters, chosen: BoolArray) -> NucleusTable:
        """The nuclei of the chosen clusters whose centroid counts."""
        described = Described(self.nr_types)
        if not chosen.any():
            return described.table()
        inst_map = _only(segment(job.raw, "local", self.smallest), clusters, chosen)
        for inst_id, nucleus in extract_nuclei(inst_map, job.raw.type_map, job.raw.type_probs).items():
            part = within(nucleus.bbox, Box(0, 0, job.box.height, job.box.width))
            mask = (inst_map[part] == inst_id).astype(np.uint8)
            box = shift(nucleus.bbox, job.box.top, job.box.left)
            centre = centroid(mask, box.left, box.top)
            if not contains_point(self.region, centre) or not any(contains_point(own, centre) for own in asked.owns):
                continue
            moved = shifted(nucleus, box, centre, job.box.left, job.box.top)
            rings = [np.array(ring, np.int32) for ring in outlines(mask)]
            outline = Outline(moved.contour, np.concatenate(rings))
            measures = measure(mask, outline, job.raw.np_prob[part], job.image[part], self.mpp)
            row, column = np.argwhere(mask)[0]
            number = clusters.numbers[part][row, column]
            corner = np.array([box.left, box.top], np.int32)
            described.add(moved, [ring + corner for ring in rings], measures, not clusters.is_open[number])
        return described.table()


def _only(inst_map: Int32Array, clusters: Clusters, chosen: BoolArray) -> Int32Array:
    return np.where(chosen[clusters.numbers], inst_map, 0).astype(np.int32)
