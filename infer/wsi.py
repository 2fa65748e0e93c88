"""Slide mode: windows through the network, tiles through post-processing, records to the journal, files at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dataloader.slides import SlideView
from hovernet_cyclic.core.errors import SlideError, UnreadableRegionError
from hovernet_cyclic.core.geometry import contains_point, grow, intersect, shift, within
from hovernet_cyclic.core.types import Box, Pixels, SlideSegmenter, UInt8Array
from infer.clusters import REACH, Clusters, find_clusters
from infer.engine import Work, through_networks
from infer.finish import Outcome, TileJob, finish_all
from infer.journal import CLUSTER, TILE, Journal, Key
from infer.slide_finish import SlideFinisher, SlideKey
from infer.slide_plan import BLOCK, MARGIN, PlannedTile, SlidePlan
from infer.slide_record import OpenCluster, head_of, read_head, with_unreadable
from infer.strips import Piece, Strips, join

_PART = 256  # px: where a window cannot be read, it is tried in squares of this size
GROWTH = 256  # px that a cut-out grows by where it does not yet hold a cluster


class Progress(NamedTuple):
    """What a tile's end tells. done, total: tiles. nuclei: so far."""

    done: int
    total: int
    nuclei: int


@dataclass
class SlideRun:
    """One slide on its way through the network.

    readers: threads that read ahead. workers: processes that post-process, 0 for none apart. largest: px of the largest
    cut-out that is post-processed at once. told: is called after each tile.
    """

    plan: SlidePlan
    segmenters: Sequence[SlideSegmenter]
    finisher: SlideFinisher
    journal: Journal
    readers: int = 1
    workers: int = 0
    largest: int = 3072**2
    told: Callable[[Progress], None] = lambda _: None
    _unreadable: dict[Key, tuple[Box, ...]] = field(default_factory=dict)

    def segment(self) -> None:
        """Do what the journal does not hold yet. Raises SlideError or OSError; what is done by then is kept."""
        done = {key for key in self.journal if key.kind == TILE}
        nuclei = sum(head_of(self.journal, key).nuclei for key in done)
        wanted = self.plan.wanted
        todo = [tile for tile in wanted if tile.key not in done]
        count = len(wanted) - len(todo)
        with Strips(self.journal.folder / "strips", 2 * MARGIN) as strips:
            for outcome in finish_all(self._tile_jobs(todo, strips), self.finisher, self.workers):
                nuclei += self._record(outcome)
                count += 1
                self.told(Progress(count, len(wanted), nuclei))
        for outcome in finish_all(self._cluster_jobs(), self.finisher, self.workers):
            nuclei += self._record(outcome)
            self.told(Progress(count, len(wanted), nuclei))

    def _record(self, outcome: Outcome[bytes]) -> int:
        if outcome.failure is not None:
            raise SlideError(outcome.failure)
        assert isinstance(outcome.key, SlideKey)
        content = outcome.result
        assert content is not None
        boxes = self._unreadable.pop(outcome.key.key, ())
        self.journal.append(outcome.key.key, with_unreadable(content, boxes) if boxes else content)
        return read_head(content).nuclei

    def _tile_jobs(self, todo: list[PlannedTile], strips: Strips) -> Iterator[TileJob | Outcome[Any]]:
        """The tiles' cut-outs, each as soon as the last window that it needs is there."""
        windows = self.plan.windows_for(todo)
        works = (Work(self._key(tile), partial(self._load, tile)) for tile in self.plan.tiles if tile.key in windows)
        answers = iter(through_networks(works, self.segmenters, self.readers))
        waiting = {tile.key for tile in todo}
        for tile in self.plan.tiles:
            row, column = tile.key.row, tile.key.column
            pieces = strips.before(row, column) if tile.key in waiting else []
            strips.forget_before(row, column)
            if tile.key in windows:
                answer = next(answers)
                if isinstance(answer, Outcome):
                    yield answer
                    return
                piece = Piece(answer.box, answer.image, self.plan.active.only(answer.raw, answer.box))
                strips.keep(row, column, piece)
                pieces.append(piece)
            if tile.key in waiting:
                joined = join(pieces, tile.tile.read)
                yield TileJob(self._key(tile), joined.image, joined.raw, tile.tile.read)

    def _key(self, tile: PlannedTile) -> SlideKey:
        return SlideKey(self.plan.name, tile.key, (tile.tile.own,))

    def _load(self, tile: PlannedTile) -> Pixels:
        """A window and what the network sees round it. What cannot be read is white, and named in the tile's record."""
        pixels, unreadable = load_window(self.plan.view, tile.tile.window, self.segmenters[0].margin)
        if unreadable:
            self._unreadable[tile.key] = unreadable
        return pixels

    def _cluster_jobs(self) -> Iterator[TileJob | Outcome[Any]]:
        """A cut-out for each cluster that no tile held whole."""
        clusters = open_clusters(self.journal)
        for i, cluster in enumerate(clusters):
            key = Key(CLUSTER, i, 0)
            if key not in self.journal:
                earlier = [other.seed for other in clusters[:i] if other.own == cluster.own]
                yield self._cluster_job(key, cluster, earlier)

    def _cluster_job(self, key: Key, cluster: OpenCluster, earlier: list[tuple[int, int]]) -> TileJob:
        """earlier: seeds that the same tile left open, before this one: parts of one cluster are counted once."""
        piece, clusters, number = self._held(cluster)
        counted = any(
            contains_point(piece.box, (column, row))
            and clusters.numbers[row - piece.box.top, column - piece.box.left] == number
            for row, column in earlier
        )
        if not clusters.is_open[number]:
            around = shift(clusters.boxes[number], piece.box.top, piece.box.left)
            piece = join([piece], grow(around, REACH, within=piece.box))
        asked = SlideKey(self.plan.name, key, () if counted else (cluster.own,), (cluster.seed,))
        return TileJob(asked, piece.image, piece.raw, piece.box)

    def _held(self, cluster: OpenCluster) -> tuple[Piece, Clusters, int]:
        """A cut-out that holds a cluster whole, or as much as `largest` allows; all clusters there; its number."""
        whole_box = Box(0, 0, *self.plan.view.shape)
        seen, growth = cluster.seen, GROWTH
        while True:
            piece = self._piece(grow(seen, growth, within=whole_box))
            clusters = find_clusters(piece.raw.np_prob, piece.box, self.plan.view.shape)
            number = int(clusters.numbers[cluster.seed[0] - piece.box.top, cluster.seed[1] - piece.box.left])
            if not clusters.is_open[number] or piece.box.height * piece.box.width >= self.largest:
                return piece, clusters, number
            seen = shift(clusters.boxes[number], piece.box.top, piece.box.left)
            growth *= 2

    def _piece(self, box: Box) -> Piece:
        """The maps of a box, asked for anew."""
        aligned = box._replace(top=box.top // BLOCK * BLOCK, left=box.left // BLOCK * BLOCK)
        pixels, _ = load_window(self.plan.view, aligned, self.segmenters[0].margin)
        raw = self.plan.active.only(self.segmenters[0].raw_maps_of(pixels), aligned)
        return Piece(aligned, pixels.image[within(aligned, pixels.box)], raw)


def open_clusters(journal: Journal) -> list[OpenCluster]:
    """The clusters that tiles left open, by place."""
    heads = [head_of(journal, key) for key in journal if key.kind == TILE]
    return sorted(cluster for head in heads for cluster in head.open_clusters)


def load_window(view: SlideView, window: Box, margin: int) -> tuple[Pixels, tuple[Box, ...]]:
    """A window with `margin` px round it, and the boxes in it, px of the view, that cannot be read and are white."""
    whole_box = Box(0, 0, *view.shape)
    box = grow(window, margin, within=whole_box)
    try:
        return Pixels(view.read(box), box, view.shape, window), ()
    except UnreadableRegionError:
        image, unreadable = _in_parts(view, box)
    named = tuple(part for one in unreadable if (part := intersect(one, window)) is not None)
    return Pixels(image, box, view.shape, window), named


def _in_parts(view: SlideView, box: Box) -> tuple[UInt8Array, list[Box]]:
    """The box read square by square, of one grid for the whole slide; those that fail are white."""
    image = np.full((box.height, box.width, 3), 255, np.uint8)
    failed = []
    for top in range(box.top // _PART * _PART, box.bottom, _PART):
        for left in range(box.left // _PART * _PART, box.right, _PART):
            square = Box(top, left, min(top + _PART, view.shape[0]), min(left + _PART, view.shape[1]))
            part = intersect(square, box)
            assert part is not None
            try:
                image[within(part, box)] = view.read(square)[within(part, square)]
            except UnreadableRegionError:
                failed.append(part)
    return image, failed
