"""From raw maps to results: post-processing and writing of tiles, in processes of their own if wanted.

Nothing here needs torch, so that a new process is ready soon.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeVar

from hovernet_cyclic.core.errors import HoverNetCyclicError
from hovernet_cyclic.core.label_maps import extract_nuclei
from hovernet_cyclic.core.types import Box, RawMaps, SegmentedTile, UInt8Array
from infer.shared_arrays import OpenParcel, Parcel, SharedBlocks
from infer.writers import OutputFolder
from models.hovernet.post_proc import SMALLEST_AREA, segment

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class TileJob:
    """A tile after the network.

    key: of its work; in tile mode the path of the image file. image: uint8 (H, W, 3) RGB. raw: of the same (H, W).
    box: where the tile lies in its image or slide, px.
    """

    key: Hashable
    image: UInt8Array
    raw: RawMaps
    box: Box


class Outcome(NamedTuple, Generic[ResultT]):
    """What became of a tile: what finishing it returned, or the sentence why there is no result."""

    key: Hashable
    result: ResultT | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Finisher:
    """Post-processes a tile and writes its files.

    variant, smallest: see post_proc.segment. mpp: um/px of the tiles, if known.
    """

    outputs: OutputFolder
    variant: str
    mpp: float | None = None
    smallest: int = SMALLEST_AREA

    def __call__(self, job: TileJob) -> int:
        """Write the files of a tile, whose key is the path of its image, and return the number of its nuclei."""
        assert isinstance(job.key, Path), "in tile mode a tile is an image file"
        inst_map = segment(job.raw, self.variant, self.smallest)
        nuclei = extract_nuclei(inst_map, job.raw.type_map, job.raw.type_probs)
        self.outputs.discard(job.key.stem)  # an earlier run may have written more kinds of files
        self.outputs.write(SegmentedTile(job.key.stem, inst_map, nuclei, self.mpp), job.image, job.raw)
        return len(nuclei)


def finish_all(
    jobs: Iterable[TileJob | Outcome[Any]], finish: Callable[[TileJob], ResultT], workers: int
) -> Iterator[Outcome[ResultT]]:
    """One Outcome per job, as they come. Jobs that are outcomes already (failed before) are passed on.

    finish: can be pickled, where there are workers. workers: processes; 0: in this one. Jobs are asked for one at a
    time, and only while fewer than 2 * workers wait, so memory holds a few tiles whatever their number. Arrays travel
    by shared memory. A process that dies takes no tile but the one that killed it along.
    """
    with _Processes(finish, workers) if workers else _Inline(finish) as place:
        for job in jobs:
            if isinstance(job, Outcome):
                yield job
            else:
                yield from place.submit(job)
        yield from place.drain()


class _Inline(Generic[ResultT]):
    """Finishes each tile at once."""

    def __init__(self, finish: Callable[[TileJob], ResultT]) -> None:
        self._finish = finish

    def __enter__(self) -> _Inline[ResultT]:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, job: TileJob) -> Iterator[Outcome[ResultT]]:
        try:
            yield Outcome(job.key, self._finish(job))
        except Exception as error:  # one tile's fault, whatever it is, must not end the others
            yield Outcome(job.key, failure=failure_sentence(job.key, error))

    def drain(self) -> Iterator[Outcome[ResultT]]:
        yield from ()


class _Sent(NamedTuple):
    """A job that a process has; parcel: where its arrays are, None where they went through the pipe."""

    job: TileJob
    parcel: Parcel | None


class _Processes(Generic[ResultT]):
    """Finishes tiles in processes, and replaces these when one dies."""

    def __init__(self, finish: Callable[[TileJob], ResultT], workers: int) -> None:
        self._finish, self._workers = finish, workers
        self._blocks = SharedBlocks()
        self._pool = self._new_pool()
        self._waiting: dict[Future[ResultT], _Sent] = {}

    def __enter__(self) -> _Processes[ResultT]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._blocks.close()

    def submit(self, job: TileJob) -> Iterator[Outcome[ResultT]]:
        """Take a job on; yields what is done by then."""
        try:
            self._send(job)
        except BrokenProcessPool:
            yield from self._one_by_one([*(sent.job for sent in self._waiting.values()), job])
        while len(self._waiting) >= 2 * self._workers:
            yield from self._collect()

    def drain(self) -> Iterator[Outcome[ResultT]]:
        """Wait for all that is left."""
        while self._waiting:
            yield from self._collect()

    def _send(self, job: TileJob) -> Future[ResultT]:
        parcel = self._blocks.put((job.image, *_arrays(job.raw)))
        try:
            if parcel is None:
                future = self._pool.submit(self._finish, job)
            else:
                future = self._pool.submit(_finish_parcel, self._finish, job.key, job.box, parcel)
        except BrokenProcessPool:
            if parcel is not None:
                self._blocks.take_back(parcel)
            raise
        self._waiting[future] = _Sent(job, parcel)
        return future

    def _collect(self) -> Iterator[Outcome[ResultT]]:
        done, _ = wait(self._waiting, return_when=FIRST_COMPLETED)
        if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
            yield from self._one_by_one([sent.job for sent in self._waiting.values()])
            return
        for future in done:
            yield self._outcome(future)

    def _one_by_one(self, jobs: list[TileJob]) -> Iterator[Outcome[ResultT]]:
        """After a process died, all that waited fail alike: find the one that did it by giving each a pool alone."""
        finished = [future for future in self._waiting if future.done() and future.exception() is None]
        done = [self._waiting[future].job for future in finished]
        for future in finished:
            yield self._outcome(future)
        for job in (job for job in jobs if not any(job is other for other in done)):
            self._renew()
            yield self._outcome(self._send(job))
        self._renew()

    def _renew(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for sent in self._waiting.values():
            if sent.parcel is not None:
                self._blocks.take_back(sent.parcel)
        self._waiting.clear()
        self._pool = self._new_pool()

    def _outcome(self, future: Future[ResultT]) -> Outcome[ResultT]:
        wait([future])
        job, parcel = self._waiting.pop(future)
        if parcel is not None:
            self._blocks.take_back(parcel)
        try:
            return Outcome(job.key, future.result())
        except Exception as error:
            return Outcome(job.key, failure=failure_sentence(job.key, error))

    def _new_pool(self) -> ProcessPoolExecutor:
        # Forking a process that runs torch's threads can hang it for ever.
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._workers, mp_context=spawn, initializer=_follow_the_parent)


def _arrays(raw: RawMaps) -> tuple[Any, ...]:
    return raw.np_prob, raw.hv_map, raw.type_map, raw.type_probs


def _finish_parcel(finish: Callable[[TileJob], ResultT], key: Hashable, box: Box, parcel: Parcel) -> ResultT:
    """In a worker: finish the tile whose arrays lie in shared memory."""
    opened = OpenParcel(parcel)
    try:
        return finish(_job_of(key, box, opened.arrays()))
    finally:
        opened.close()


def _job_of(key: Hashable, box: Box, arrays: list[Any]) -> TileJob:
    return TileJob(key, arrays[0], RawMaps(*arrays[1:]), box)


def _follow_the_parent() -> None:
    """Leave interrupts to the parent, and end when it is killed: a process that waits for work would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def failure_sentence(key: Hashable, error: BaseException) -> str:
    """Why there is no result for an image file or a tile, in one sentence that names it."""
    if isinstance(error, HoverNetCyclicError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which needs no import
        return f"{key}: memory is too small for it: give a smaller --batch_size, or cut the image into smaller ones."
    if isinstance(error, BrokenProcessPool):
        return (
            f"{key}: the process that finished it was killed, most likely for want of memory: give fewer "
            "--nr_post_proc_workers, or cut the image into smaller ones."
        )
    if isinstance(error, OSError):
        return (
            f"{key}: its results cannot be written ({error.strerror or error}): check the output folder and its disk."
        )
    return f"{key}: it failed in an unexpected way ({type(error).__name__}: {error}): please report this."
