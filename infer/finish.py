"""From raw maps to files: post-processing and writing of tiles, in processes of their own if wanted.

Nothing here needs torch, so that a new process is ready soon.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hovernet_cyclic.core.errors import HoverNetCyclicError
from hovernet_cyclic.core.label_maps import extract_nuclei
from hovernet_cyclic.core.types import RawMaps, SegmentedTile, UInt8Array
from infer.writers import OutputFolder
from models.hovernet.post_proc import segment


@dataclass(frozen=True)
class TileJob:
    """A tile after the network. path: its image file. image: uint8 (H, W, 3) RGB. raw: of the same (H, W)."""

    path: Path
    image: UInt8Array
    raw: RawMaps


class Outcome(NamedTuple):
    """What became of an image file: the number of its nuclei, or the sentence why there is no result."""

    path: Path
    nuclei: int = 0
    failure: str | None = None


@dataclass(frozen=True)
class Finisher:
    """Post-processes a tile and writes its files. variant: see post_proc.segment. mpp: um/px of the tiles, if known."""

    outputs: OutputFolder
    variant: str
    mpp: float | None = None

    def __call__(self, job: TileJob) -> int:
        """Write the files of a tile and return the number of its nuclei."""
        inst_map = segment(job.raw, self.variant)
        nuclei = extract_nuclei(inst_map, job.raw.type_map, job.raw.type_probs)
        self.outputs.discard(job.path.stem)  # an earlier run may have written more kinds of files
        self.outputs.write(SegmentedTile(job.path.stem, inst_map, nuclei, self.mpp), job.image, job.raw)
        return len(nuclei)


def finish_all(jobs: Iterable[TileJob | Outcome], finish: Callable[[TileJob], int], workers: int) -> Iterator[Outcome]:
    """One Outcome per job, as they come. Jobs that are outcomes already (failed before) are passed on.

    workers: processes; 0: in this one. Jobs are asked for one at a time, and only while fewer than 2 * workers wait, so
    memory holds a few tiles whatever their number. A process that dies takes no tile but the one that killed it along.
    """
    with _Processes(finish, workers) if workers else _Inline(finish) as place:
        for job in jobs:
            if isinstance(job, Outcome):
                yield job
            else:
                yield from place.submit(job)
        yield from place.drain()


class _Inline:
    """Finishes each tile at once."""

    def __init__(self, finish: Callable[[TileJob], int]) -> None:
        self._finish = finish

    def __enter__(self) -> _Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, job: TileJob) -> Iterator[Outcome]:
        try:
            yield Outcome(job.path, self._finish(job))
        except Exception as error:  # one tile's fault, whatever it is, must not end the others
            yield Outcome(job.path, failure=failure_sentence(job.path, error))

    def drain(self) -> Iterator[Outcome]:
        yield from ()


class _Processes:
    """Finishes tiles in processes, and replaces these when one dies."""

    def __init__(self, finish: Callable[[TileJob], int], workers: int) -> None:
        self._finish, self._workers = finish, workers
        self._pool = self._new_pool()
        self._waiting: dict[Future[int], TileJob] = {}

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, job: TileJob) -> Iterator[Outcome]:
        """Take a job on; yields what is done by then."""
        try:
            self._waiting[self._pool.submit(self._finish, job)] = job
        except BrokenProcessPool:
            yield from self._one_by_one([*self._waiting.values(), job])
        while len(self._waiting) >= 2 * self._workers:
            yield from self._collect()

    def drain(self) -> Iterator[Outcome]:
        """Wait for all that is left."""
        while self._waiting:
            yield from self._collect()

    def _collect(self) -> Iterator[Outcome]:
        done, _ = wait(self._waiting, return_when=FIRST_COMPLETED)
        for future in done:
            if isinstance(future.exception(), BrokenProcessPool):
                yield from self._one_by_one(list(self._waiting.values()))
                return
            yield self._outcome(future, self._waiting.pop(future))

    def _one_by_one(self, jobs: list[TileJob]) -> Iterator[Outcome]:
        """After a process died, all that waited fail alike: find the one that did it by giving each a pool alone."""
        self._waiting.clear()
        for job in jobs:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = self._new_pool()
            yield self._outcome(self._pool.submit(self._finish, job), job)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._new_pool()

    def _outcome(self, future: Future[int], job: TileJob) -> Outcome:
        try:
            return Outcome(job.path, future.result())
        except Exception as error:
            return Outcome(job.path, failure=failure_sentence(job.path, error))

    def _new_pool(self) -> ProcessPoolExecutor:
        # Forking a process that runs torch's threads can hang it for ever.
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._workers, mp_context=spawn, initializer=_leave_interrupts_to_the_parent)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def failure_sentence(path: Path, error: BaseException) -> str:
    """Why there is no result for an image file, in one sentence that names it."""
    if isinstance(error, HoverNetCyclicError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which needs no import
        return f"{path}: memory is too small for it: give a smaller --batch_size, or cut the image into smaller ones."
    if isinstance(error, BrokenProcessPool):
        return (
            f"{path}: the process that finished it was killed, most likely for want of memory: give fewer "
            "--nr_post_proc_workers, or cut the image into smaller ones."
        )
    if isinstance(error, OSError):
        return (
            f"{path}: its results cannot be written ({error.strerror or error}): check the output folder and its disk."
        )
    return f"{path}: it failed in an unexpected way ({type(error).__name__}: {error}): please report this."
