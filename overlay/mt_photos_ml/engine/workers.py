# SPDX-License-Identifier: AGPL-3.0-only
"""Worker threads and the queue in front of them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MAX_WAITING = 100
"""Jobs that may wait in all processes of a service; further ones are refused."""

T = TypeVar("T")


class Busy(RuntimeError):
    """The service has too much to do to accept more."""


class Workers:
    """Runs one job per thread at a time; further jobs wait in order, up to a limit."""

    def __init__(self, name: str, threads: int, waiting: int = MAX_WAITING, patience: float = 0.0) -> None:
        """threads: number of worker threads. waiting: jobs that may wait. patience: seconds that each may wait; 0: no
        limit."""
        self._pool = ThreadPoolExecutor(threads, name)
        self._places = asyncio.Semaphore(threads)
        self._patience = patience or None
        self.threads, self.most = threads, threads + waiting
        """Jobs that run at the same time; jobs that are accepted, running or waiting."""
        self.present = 0
        """Jobs that wait or run."""

    def require_room(self) -> None:
        """Raises Busy if the queue is full."""
        if self.present >= self.most:
            raise Busy(f"the queue is full ({self.present} requests)")

    async def run(self, work: Callable[[], T]) -> T:
        """Runs a job in a thread when its turn comes, and returns what it returns. Raises Busy at once if the queue is
        full, or when the job has waited too long. A job that is cancelled while it waits never starts; one that has
        started runs to its end."""
        self.require_room()
        self.present += 1
        try:
            await self._wait_for_place()
            try:
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
            finally:
                self._places.release()
        finally:
            self.present -= 1

    async def _wait_for_place(self) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await self._places.acquire()
        except TimeoutError:
            raise Busy(f"the request waited in the queue for {self._patience:g} s (QUEUE_TIMEOUT)") from None

    def close(self) -> None:
        """Waits until all running jobs have ended."""
        self._pool.shutdown()
