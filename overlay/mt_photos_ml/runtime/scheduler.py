# SPDX-License-Identifier: AGPL-3.0-only
"""Divides the CPU's cores among inferences."""

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from . import InferenceError, Node, Session, Tensors

log = logging.getLogger("mt_photos_ml")

_OUT_OF_MEMORY = ("bad allocation", "bad_alloc", "Failed to allocate memory", "out of memory", "OUT_OF_MEMORY")


class Usage(threading.local):
    """What each thread has used. model_ms: milliseconds of its inferences since it became a worker."""

    model_ms = 0.0


class CpuScheduler:
    """Gives an inference several cores, or one if there are as many workers as cores. Inferences wait for free
    cores."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._free = threading.Semaphore(cores)
        self._turn, self._counting = threading.Lock(), threading.Lock()
        self._workers = 0
        self._running = Counter[Session]()
        self._usage = Usage()

    @contextlib.contextmanager
    def worker(self) -> Iterator[Usage]:
        """The context of a worker, from decoding to the answer; a worker counts as using a core."""
        self._usage.model_ms = 0.0
        with self._counting:
            self._workers += 1
        try:
            yield self._usage
        finally:
            with self._counting:
                self._workers -= 1

    def run(self, session: Session, feed: Tensors) -> list[NDArray[Any]]:
        chosen = session.choose(feed, self._workers >= self._cores)
        if cores := min(chosen.cores, self._cores):
            self._take(chosen, cores)
        try:
            started = time.perf_counter()
            return chosen.run(feed)
        finally:
            self._usage.model_ms += (time.perf_counter() - started) * 1000
            if cores:
                self._give_back(chosen, cores)

    def _take(self, session: Session, cores: int) -> None:
        """Waits for a core for the caller's thread. The first inference of a session also waits for the cores of the
        threads that all inferences of the session share."""
        with self._turn:  # one caller at a time, so that an inference that needs several cores gets them
            self._free.acquire()
            with self._counting:
                self._running[session] += 1
                is_first = self._running[session] == 1
            for _ in range(cores - 1 if is_first else 0):
                self._free.acquire()

    def _give_back(self, session: Session, cores: int) -> None:
        with self._counting:
            self._running[session] -= 1
            is_last = not self._running[session]
            self._running += Counter()  # drops sessions with no running inference
        self._free.release(cores if is_last else 1)


@dataclass(frozen=True)
class ScheduledSession:
    """A session whose inferences wait for cores; it may still be opening. name: of its model."""

    name: str
    opening: Future[Session]
    scheduler: CpuScheduler

    @property
    def cores(self) -> int:
        return self.opening.result().cores

    @property
    def few_shapes(self) -> bool:
        return self.opening.result().few_shapes

    def declare(self, shapes: Sequence[Sequence[int]]) -> None:
        self.opening.result().declare(shapes)

    def choose(self, feed: Tensors, is_busy: bool) -> Session:
        return self.opening.result().choose(feed, is_busy)

    @property
    def inputs(self) -> Sequence[Node]:
        return self.opening.result().inputs

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.opening.result().metadata

    @property
    def outputs(self) -> Sequence[Node]:
        return self.opening.result().outputs

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        """Raises InferenceError, or MemoryError."""
        try:
            return self.scheduler.run(self.opening.result(), feed)
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime exports no error classes
            if any(words in str(error) for words in _OUT_OF_MEMORY):
                raise MemoryError from error
            log.error("%s: %s", self.name, error)
            raise InferenceError(f"{self.name}: inference failed; see the service's log") from error
