"""Requests to stop: SIGTERM, as a cluster sends it before it takes a machine away, and Ctrl-C.

While a run trains, a request is noted, and heard at the end of the step or tile under way: no file and no pool of
processes is left in the middle. Before and after, it ends the program at once. It stays noted, so that it is heard at
the next occasion even where some library swallowed it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hovernet_cyclic.core.types import RawMaps, Segmenter, UInt8Array

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_S = 1.0  # seconds in which a second signal is the first: a terminal or a cluster tells all, torchrun tells again


class Preempted(KeyboardInterrupt):
    """SIGTERM has come. Like Ctrl-C, it is no Exception: what catches those must let it pass."""


class StopRequest:
    """The handler of both signals in this process, and what was asked so far."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._asked_at = 0.0
        self._deferred = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; raise for it at once where nothing defers it, and for a second Ctrl-C anywhere."""
        now = time.monotonic()
        if self._asked is not None and now - self._asked_at < SAME_S:
            return
        impatient = self._asked is not None and number == signal.SIGINT
        if self._asked is None:
            self._asked, self._asked_at = number, now
        if impatient:
            raise KeyboardInterrupt
        if not self._deferred:
            self.heed()

    @property
    def is_asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._asked is not None

    def heed(self) -> None:
        """Raise Preempted or KeyboardInterrupt where one has been asked for."""
        if self._asked == signal.SIGTERM:
            raise Preempted
        if self._asked is not None:
            raise KeyboardInterrupt

    def heed_within(self, seconds: float) -> None:
        """As `heed`, but a signal may still be on its way: another process of the same job has had it."""
        end = time.monotonic() + seconds
        while not self.is_asked and time.monotonic() < end:
            time.sleep(0.05)
        self.heed()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a first request is only noted."""
        self.heed()
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False


@dataclass(frozen=True)
class HeedfulSegmenter:
    """A segmenter that raises what was asked of the run instead of segmenting yet another image."""

    segmenter: Segmenter
    stop: StopRequest

    def raw_maps(self, image: UInt8Array) -> RawMaps:
        """See Segmenter."""
        self.stop.heed()
        return self.segmenter.raw_maps(image)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Hear SIGTERM and SIGINT inside, if this is a process's main thread; none other is told of signals."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # who was begun with Ctrl-C ignored (in the background of a script) goes on ignoring it
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_request() -> StopRequest:
    """The one that listens in this process; one that never hears anything where none does."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, StopRequest) else StopRequest()
