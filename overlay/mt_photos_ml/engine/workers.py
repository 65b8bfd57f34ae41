# SPDX-License-Identifier: AGPL-3.0-only
"""Worker threads and the queue in front of them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MAX_WAITING = 100
"""Pieces of work that may wait in all processes of a service; one more is refused."""

T = TypeVar("T")


class Busy(RuntimeError):
    """There is so much to do that no more is taken."""


class Workers:
    """Does one piece of work a thread at once; further ones wait in order, up to a bound."""

    def __init__(self, name: str, threads: int, waiting: int = MAX_WAITING, patience: float = 0.0) -> None:
        """threads: that work. waiting: pieces of work that may wait for one. patience: seconds that each may wait; 0
        for any time."""
        self._pool = ThreadPoolExecutor(threads, name)
        self._places = asyncio.Semaphore(threads)
        self._patience = patience or None
        self.threads, self.most = threads, threads + waiting
        """Pieces of work that are done at once; that are taken."""
        self.present = 0
        """Pieces of work that wait or are being done."""

    def require_room(self) -> None:
        """Raises Busy if the queue is full."""
        if self.present >= self.most:
            raise Busy(f"{self.present} requests are waiting already")

    async def run(self, work: Callable[[], T]) -> T:
        """What the work returns, done in a thread once it is its turn. Raises Busy at once if the queue is full, or
        when the work has waited too long. Work that is cancelled while it waits is not begun; once begun it ends by
        itself."""
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
            raise Busy(f"this has waited for {self._patience:g} s (QUEUE_TIMEOUT), and others wait before it") from None

    def close(self) -> None:
        """Waits for what is being done."""
        self._pool.shutdown()
