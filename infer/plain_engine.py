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


def finish_all(
    jobs: Iterable[TileJob | Outcome], finish: Callable[[TileJob], Any], workers: int
) -> Iterator[Outcome]:
    for job in jobs:
        if isinstance(job, Outcome):
            yield job
            continue
        try:
            yield Outcome(job.key, finish(job))
        except Exception as error:
            yield Outcome(job.key, failure=failure_sentence(Path(str(job.key)), error))
