"""Batches made ahead of the step that takes them, by a thread or by processes."""

from __future__ import annotations

import mmap
import multiprocessing
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, TypeVar

import cv2

from dataloader.train_loader import prefetch
from hovernet_cyclic.core.errors import RecipeError

BatchT = TypeVar("BatchT")

Frozen = tuple[bytes, str, list[int]]  # a pickle, a file of what was left out of it, and the bytes of each piece there


def made_ahead(make: Callable[[int], BatchT], steps: range, workers: int = 0) -> Iterator[BatchT]:
    """make(step) for each step, in order.

    workers: how many processes make them, each a batch ahead, or 0 for a thread of this one. They are given what `make`
    holds, and its arrays as pages of a file that all of them share. Raises what `make` raises, and RecipeError where a
    process ends without a word.
    """
    if workers == 0 or not steps:
        yield from prefetch(make, steps)
        return
    with _started(make, steps, min(workers, len(steps))) as answers:
        yield from prefetch(lambda step: _taken(answers[(step - steps.start) % len(answers)]), steps)


@contextmanager
def _started(make: Callable[[int], Any], steps: range, count: int) -> Iterator[list[Connection]]:
    """`count` processes that share the steps out, one after the other; each answers through its own pipe."""
    spawn = multiprocessing.get_context("spawn")  # a copy by fork, of a process with threads, may hang
    processes, answers = [], []
    with tempfile.NamedTemporaryFile(prefix="hovernet_cyclic_") as file:
        frozen = _freeze(make, file)
        for number in range(count):
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_serve, args=(frozen, steps[number::count], theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            answers.append(ours)
        for answer in answers:
            _taken(answer)  # it has opened the file, which then needs no name
    try:
        yield answers
    finally:
        for process, answer in zip(processes, answers, strict=True):
            process.kill()
            process.join()
            answer.close()


def _freeze(make: Callable[[int], Any], file: IO[bytes]) -> Frozen:
    """Pickle `make`, less its arrays, which go into the file."""
    pieces: list[pickle.PickleBuffer] = []
    head = pickle.dumps(make, protocol=5, buffer_callback=pieces.append)
    sizes = []
    for piece in pieces:
        with piece.raw() as view:
            sizes.append(view.nbytes)
            file.write(view)
    file.flush()
    return head, file.name, sizes


def _thaw(frozen: Frozen) -> Callable[[int], Any]:
    head, name, sizes = frozen
    if not sum(sizes):
        return pickle.loads(head, buffers=[b""] * len(sizes))  # type: ignore[no-any-return]
    with Path(name).open("rb") as file:
        pages = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))  # what is written to stays one's own
    pieces = [pages[end - size : end] for end, size in zip(accumulate(sizes), sizes, strict=True)]
    return pickle.loads(head, buffers=pieces)  # type: ignore[no-any-return]


def _serve(frozen: Frozen, steps: Sequence[int], answer: Connection) -> None:
    """What such a process does: sends (True, batch) for each step, or (False, error) once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the process that trains is told too, and ends this one
    cv2.setNumThreads(1)
    with suppress(BrokenPipeError, ConnectionResetError):  # the process that trains has ended
        try:
            make = _thaw(frozen)
            answer.send((True, None))
            for step in steps:
                answer.send((True, make(step)))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            answer.send((False, error))


def _taken(answer: Connection) -> Any:
    try:
        well, made = answer.recv()
    except (EOFError, ConnectionResetError) as error:
        raise RecipeError(
            "A process that prepares batches has ended without a word (out of memory, perhaps): give a smaller "
            "--num_workers, and --resume to go on."
        ) from error
    if not well:
        raise made
    return made
