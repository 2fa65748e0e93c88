"""Windows through one network, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hovernet_cyclic.core.geometry import within
from hovernet_cyclic.core.types import Box, Pixels, RawMaps, UInt8Array
from infer.finish import failure_sentence


class WindowSegmenter(Protocol):
    margin: int

    def cell(self, whole: tuple[int, int]) -> int: ...

    def raw_maps_of(self, pixels: Pixels) -> RawMaps: ...


@dataclass(frozen=True)
class Work:
    key: Hashable
    load: Callable[[], Pixels]


@dataclass(frozen=True)
class TileJob:
    key: Hashable
    image: UInt8Array
    raw: RawMaps
    box: Box


class Outcome(NamedTuple):
    key: Hashable
    result: Any = None
    failure: str | None = None


def through_networks(
    works: Iterable[Work], segmenters: Sequence[WindowSegmenter], readers: int
) -> Iterator[TileJob | Outcome]:
    for work in works:
        try:
            pixels = work.load()
            raw = segmenters[0].raw_maps_of(pixels)
            yield TileJob(work.key, pixels.image[within(pixels.wanted, pixels.box)], raw, pixels.wanted)
        except Exception as error:
            yield Outcome(work.key, failure=failure_sentence(Path(str(work.key)), error))


def finish_all(jobs: Iterable[TileJob | Outcome], finish: Callable[[TileJob], Any], workers: int) -> Iterator[Outcome]:
    for job in jobs:
        if isinstance(job, Outcome):
            yield job
            continue
        try:
            yield Outcome(job.key, finish(job))
        except Exception as error:
            yield Outcome(job.key, failure=failure_sentence(Path(str(job.key)), error))


class LatticeSegmenter:
    """A NetworkSegmenter asked at the patches of one lattice for the whole slide."""

    def __init__(self, segmenter: Any) -> None:
        from models.hovernet.net_desc import patch_shapes

        self._segmenter = segmenter
        self._shapes = patch_shapes(segmenter.mode)
        self.margin = max(self._shapes.input)

    def cell(self, whole: tuple[int, int]) -> int:
        return self._shapes.output[0]

    def raw_maps_of(self, pixels: Pixels) -> RawMaps:
        import numpy as np
        import torch

        from infer.strips import Piece, join
        from models.hovernet.net_desc import softmax_maps, type_probabilities

        (size, _), (out, _) = self._shapes
        halo = (size - out) // 2
        (height, width), wanted, box = pixels.whole, pixels.wanted, pixels.box
        rows = range(wanted.top // out * out, wanted.bottom, out)
        columns = range(wanted.left // out * out, wanted.right, out)
        corners = [(row, column) for row in rows for column in columns]
        pieces = []
        self._segmenter.net.eval()
        for begin in range(0, len(corners), self._segmenter.batch_size):
            some = corners[begin : begin + self._segmenter.batch_size]
            patches = []
            for row, column in some:
                r = _mirrored(np.arange(row - halo, row - halo + size), height) - box.top
                c = _mirrored(np.arange(column - halo, column - halo + size), width) - box.left
                patches.append(pixels.image[np.ix_(r, c)])
            with torch.inference_mode():
                output = self._segmenter._answer(np.stack(patches))
                prob, hv, types = softmax_maps(output)
                probs = None if types is None else type_probabilities(output)
            for i, (row, column) in enumerate(some):
                raw = RawMaps(
                    prob[i].cpu().numpy(),
                    hv[i].cpu().numpy(),
                    None if types is None else types[i].cpu().numpy(),
                    None if probs is None else probs[i].cpu().numpy(),
                )
                shape = (out, out, 3)
                pieces.append(Piece(Box(row, column, row + out, column + out), np.zeros(shape, np.uint8), raw))
        return join(pieces, wanted).raw


def _mirrored(indices: Any, length: int) -> Any:
    import numpy as np

    if length == 1:
        return np.zeros_like(indices)
    period = 2 * (length - 1)
    folded = np.abs(indices) % period
    return np.minimum(folded, period - folded)
