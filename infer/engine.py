"""Images and windows through one network per device, while others are read and earlier ones are finished.

Reading threads, device threads and whoever consumes the answers work at the same time; what is between them is bounded.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from hovernet_cyclic.core.types import Pixels, RawMaps, WindowSegmenter
from infer.finish import Outcome, TileJob, failure_sentence


@dataclass(frozen=True)
class Work:
    """An image, or a window of a slide, to put through a network.

    key: comes back with the answer; str(key) names it to a person. load: called once, in a reading thread; what it
    raises makes the failure of this work alone.
    """

    key: Hashable
    load: Callable[[], Pixels]


class _Order(NamedTuple):
    """For a device thread: what to do, the pixels that are being read for it, and where the answer goes."""

    work: Work
    pixels: Future[Pixels]
    answer: Future[TileJob | Outcome[Any]]


def through_networks(
    works: Iterable[Work], segmenters: Sequence[WindowSegmenter], readers: int
) -> Iterator[TileJob | Outcome[Any]]:
    """The raw maps of each work, or the sentence why there are none; in the order of `works`.

    segmenters: one per device, of the same network; each takes the next work when it is free. readers: threads that
    read ahead, at least one. `works` is asked late: at most readers + 2 * devices of them are held at a time.
    """
    orders: SimpleQueue[_Order | None] = SimpleQueue()
    waiting: deque[Future[TileJob | Outcome[Any]]] = deque()
    most = max(readers, 1) + 2 * len(segmenters)
    threads = [Thread(target=_serve, args=(segmenter, orders), daemon=True) for segmenter in segmenters]
    with ThreadPoolExecutor(max(readers, 1)) as pool:
        for thread in threads:
            thread.start()
        try:
            for work in works:
                order = _Order(work, pool.submit(work.load), Future())
                orders.put(order)
                waiting.append(order.answer)
                if len(waiting) >= most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            _stop(orders, threads)
            pool.shutdown(cancel_futures=True)


def _stop(orders: SimpleQueue[_Order | None], threads: Sequence[Thread]) -> None:
    """End the device threads after what they are at; what nobody waits for any more is left undone."""
    while not orders.empty():
        with contextlib.suppress(Exception):
            orders.get_nowait()
    for _ in threads:
        orders.put(None)
    for thread in threads:
        thread.join()


def _serve(segmenter: WindowSegmenter, orders: SimpleQueue[_Order | None]) -> None:
    """Do orders until there are no more. A device computes one while the answer of the one before is fetched."""
    previous: Callable[[], None] | None = None
    while True:
        if previous is not None and orders.empty():  # nothing to overlap with: do not keep a finished answer
            previous()
            previous = None
        order = orders.get()
        if order is None:
            break
        current = _begin(segmenter, order)
        if previous is not None:
            previous()
        previous = current
    if previous is not None:
        previous()


def _begin(segmenter: WindowSegmenter, order: _Order) -> Callable[[], None]:
    """Start on an order; what is returned completes its answer, and raises nothing."""
    try:
        pixels = order.pixels.result()
        wait = segmenter.begin(pixels)
    except BaseException as error:
        return _failing(order, error)

    def complete() -> None:
        try:
            order.answer.set_result(_job(order.work, pixels, wait()))
        except BaseException as error:
            _failing(order, error)()

    return complete


def _job(work: Work, pixels: Pixels, raw: RawMaps) -> TileJob:
    wanted, box = pixels.wanted, pixels.box
    rows = slice(wanted.top - box.top, wanted.bottom - box.top)
    columns = slice(wanted.left - box.left, wanted.right - box.left)
    return TileJob(work.key, pixels.image[rows, columns], raw, wanted)


def _failing(order: _Order, error: BaseException) -> Callable[[], None]:
    """One work's fault, whatever it is, does not end the others; but an interrupt ends the run."""
    if isinstance(error, Exception):
        failure: Outcome[Any] = Outcome(order.work.key, failure=failure_sentence(order.work.key, error))
        return lambda: order.answer.set_result(failure)
    return lambda: order.answer.set_exception(error)
