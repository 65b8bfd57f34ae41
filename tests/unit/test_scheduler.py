# SPDX-License-Identifier: AGPL-3.0-only
"""The scheduler: cores are shared out, and the time that inferences take is known to who asked for them."""

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mt_photos_ml.runtime.scheduler import CpuScheduler


def test_only_so_many_inferences_run_at_once() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    class Slow:
        inputs: tuple[()] = ()
        outputs: tuple[()] = ()
        metadata: Mapping[str, str] = {}
        one_thread = None

        def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.02)
            with lock:
                running -= 1
            return [np.zeros(1)]

    scheduler = CpuScheduler(cores=4, threads=2)
    spent: list[float] = []

    def work() -> None:
        with scheduler.worker() as usage:
            scheduler.run(Slow(), {})
            spent.append(usage.model_ms)
        with scheduler.worker() as usage:
            assert usage.model_ms == 0

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
    assert len(spent) == 8
    assert min(spent) >= 15


def test_a_lone_worker_gets_several_threads_and_as_many_as_there_are_cores_one_each() -> None:
    scheduler, used = CpuScheduler(cores=2, threads=2), list[str]()

    class Named:
        inputs: tuple[()] = ()
        outputs: tuple[()] = ()
        metadata: Mapping[str, str] = {}

        def __init__(self, name: str, one_thread: "Named | None") -> None:
            self.name, self.one_thread = name, one_thread

        def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            used.append(self.name)
            return []

    several = Named("several", Named("one", None))
    with scheduler.worker():
        scheduler.run(several, {})
        with scheduler.worker():
            scheduler.run(several, {})
            scheduler.run(Named("several, it has no other", None), {})
        scheduler.run(several, {})
    assert used == ["several", "one", "several, it has no other", "several"]
