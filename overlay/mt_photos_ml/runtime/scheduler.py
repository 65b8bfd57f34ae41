# SPDX-License-Identifier: AGPL-3.0-only
"""Shares the processor's cores out to inferences."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from . import Node, RuntimeSession, Tensors


class Usage(threading.local):
    """model_ms: what this thread's inferences took since it became a worker, in milliseconds."""

    model_ms = 0.0


class CpuScheduler:
    """Several cores to a lone inference, one to each where as many workers are at work as there are cores. What finds
    none free waits its turn."""

    def __init__(self, cores: int, threads: int) -> None:
        """threads: of an inference that is alone."""
        self._cores, self._threads = cores, min(threads, cores)
        self._free = threading.Semaphore(cores)
        self._turn, self._counting = threading.Lock(), threading.Lock()
        self._workers = 0
        self._usage = Usage()

    @contextlib.contextmanager
    def worker(self) -> Iterator[Usage]:
        """A worker is in it from decoding to answer, and wants a core throughout."""
        self._usage.model_ms = 0.0
        with self._counting:
            self._workers += 1
        try:
            yield self._usage
        finally:
            with self._counting:
                self._workers -= 1

    def run(self, session: RuntimeSession, feed: Tensors) -> list[NDArray[Any]]:
        one_thread = session.one_thread if self._workers >= self._cores else None
        chosen, threads = (one_thread, 1) if one_thread else (session, self._threads)
        with self._turn:  # one at a time gathers cores, so that who needs several is not passed by for ever
            for _ in range(threads):
                self._free.acquire()
        try:
            started = time.perf_counter()
            return chosen.run(feed)
        finally:
            self._usage.model_ms += (time.perf_counter() - started) * 1000
            self._free.release(threads)


@dataclass(frozen=True)
class ScheduledSession:
    """A session, perhaps still being opened, whose inferences wait for their cores."""

    opening: Future[RuntimeSession]
    scheduler: CpuScheduler

    @property
    def inputs(self) -> Sequence[Node]:
        return self.opening.result().inputs

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.opening.result().metadata

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        return self.scheduler.run(self.opening.result(), feed)
