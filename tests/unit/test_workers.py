# SPDX-License-Identifier: AGPL-3.0-only
"""Workers: how many jobs run at once, how many wait, and that every place becomes free again."""

import asyncio
import threading

import pytest

from inside import eventually
from mt_photos_ml.engine.workers import Busy, Workers

pytestmark = pytest.mark.anyio


class Gate:
    """A job that runs until the gate is opened."""

    def __init__(self) -> None:
        self.begun: list[threading.Thread] = []
        self._open = threading.Event()

    def work(self) -> int:
        self.begun.append(threading.current_thread())
        assert self._open.wait(60)
        return 7

    def open(self) -> None:
        self._open.set()


async def test_jobs_run_and_wait_up_to_the_limits_and_one_too_many_is_refused() -> None:
    gate, workers = Gate(), Workers("photo", 33, 2)  # more threads than Python's default
    running = [asyncio.create_task(workers.run(gate.work)) for _ in range(35)]
    await eventually(lambda: len(gate.begun) == 33 and workers.present == 35)
    with pytest.raises(Busy, match=r"^the queue is full \(35 requests\)$"):
        await workers.run(gate.work)
    gate.open()
    assert await asyncio.gather(*running) == [7] * 35
    assert workers.present == 0
    workers.close()
    assert len(gate.begun) == 35
    assert not any(thread.is_alive() for thread in gate.begun)
    assert {thread.name.rpartition("_")[0] for thread in gate.begun} == {"photo"}, "a thread dump names them"


async def test_a_job_that_fails_or_is_cancelled_while_it_waits_frees_its_place() -> None:
    gate, workers = Gate(), Workers("photo", 1)

    def fail() -> int:
        raise ValueError

    tasks = [asyncio.create_task(workers.run(work)) for work in (gate.work, gate.work, fail)]
    await eventually(lambda: len(gate.begun) == 1 and workers.present == 3)
    tasks[1].cancel()
    await eventually(lambda: workers.present == 2)
    gate.open()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [int, asyncio.CancelledError, ValueError]
    assert await workers.run(gate.work) == 7
    assert (len(gate.begun), workers.present) == (2, 0), "the cancelled job never started"
    workers.close()


async def test_a_job_that_has_waited_too_long_is_refused_and_frees_its_place() -> None:
    gate, workers = Gate(), Workers("photo", 1, patience=0.2)
    first = asyncio.create_task(workers.run(gate.work))
    await eventually(lambda: len(gate.begun) == 1)
    with pytest.raises(Busy, match=r"^the request waited in the queue for 0\.2 s \(QUEUE_TIMEOUT\)$"):
        await workers.run(gate.work)
    assert workers.present == 1
    gate.open()
    assert await first == 7, "a running job may take longer"
    assert await workers.run(gate.work) == 7
    workers.close()
