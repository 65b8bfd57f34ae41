# SPDX-License-Identifier: AGPL-3.0-only
"""Inferences share the cores and are timed; running out of memory is told apart from other errors."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mt_photos_ml.runtime import InferenceError, Node, PlainSession, Session, Tensors
from mt_photos_ml.runtime.scheduler import CpuScheduler, ScheduledSession


class Sleeping(PlainSession):
    """A session on two cores that sleeps for 20 ms. most: how many of all sessions ran at once."""

    inputs: tuple[Node, ...] = ()
    outputs: tuple[Node, ...] = ()
    metadata: Mapping[str, str] = {}
    running = most = 0
    lock = threading.Lock()

    def __init__(self, one: "Sleeping | None" = None, error: Exception | None = None, cores: int = 2) -> None:
        """one: the session for one core."""
        self.one, self.error, self.cores, self.runs = one, error, cores, 0

    def choose(self, feed: Tensors, is_busy: bool) -> "Sleeping":
        return self.one if self.one and is_busy else self

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        with self.lock:
            Sleeping.running += 1
            Sleeping.most = max(Sleeping.most, Sleeping.running)
        time.sleep(0.02)
        with self.lock:
            Sleeping.running -= 1
        self.runs += 1
        if self.error:
            raise self.error
        return [np.zeros(1)]


def test_no_more_inferences_run_at_once_than_there_are_cores() -> None:
    """Three use four cores: one for each caller's thread, and one for the thread of the session, which they share."""
    scheduler, session, spent_ms = CpuScheduler(4), Sleeping(), list[float]()
    everybody, Sleeping.most = threading.Barrier(8), 0

    def work(_: int) -> None:
        with scheduler.worker() as usage:
            everybody.wait(10)
            scheduler.run(session, {})
            everybody.wait(10)
            spent_ms.append(usage.model_ms)
        with scheduler.worker() as usage:
            spent_ms.append(usage.model_ms)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert Sleeping.most == 3
    assert sorted(spent_ms)[:8] == [0] * 8, "the time of a worker starts at 0"
    assert sorted(spent_ms)[8] >= 15


def test_several_sessions_share_no_threads() -> None:
    scheduler, Sleeping.most = CpuScheduler(4), 0
    sessions = [Sleeping() for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda session: scheduler.run(session, {}), sessions))
    assert Sleeping.most == 2


def test_a_lone_worker_gets_several_threads_and_each_of_many_gets_one() -> None:
    scheduler, one = CpuScheduler(2), Sleeping(cores=1)
    several = Sleeping(one)
    for workers, expected in ((1, (1, 0)), (2, (1, 1)), (1, (2, 1))):
        with scheduler.worker(), scheduler.worker() if workers == 2 else nullcontext():
            scheduler.run(several, {})
        assert (several.runs, one.runs) == expected


def test_an_inference_on_a_device_waits_for_no_core() -> None:
    scheduler, on_device = CpuScheduler(1), Sleeping(cores=0)

    class Waiting(Sleeping):
        def run(self, feed: Tensors) -> list[NDArray[Any]]:
            return scheduler.run(on_device, feed)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(scheduler.run, Waiting(cores=1), {}).result(10)
    assert on_device.runs == 1


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (RuntimeError("BFCArena: Failed to allocate memory for 9 bytes"), MemoryError, ""),
        (MemoryError(), MemoryError, ""),
        (ValueError("a wrong shape"), InferenceError, "ocr/small: inference failed; see the service's log"),
    ],
)
def test_a_failed_inference_names_its_model_or_a_lack_of_memory(
    error: Exception, raised: type[Exception], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    opening, scheduler = Future[Session](), CpuScheduler(1)
    opening.set_result(Sleeping(error=error))
    session = ScheduledSession("ocr/small", opening, scheduler)
    for _ in range(2):  # the second needs the cores of the first
        with pytest.raises(raised) as caught:
            session.run({})
        assert str(caught.value) == words
    assert caplog.messages == (["ocr/small: a wrong shape"] * 2 if words else [])
