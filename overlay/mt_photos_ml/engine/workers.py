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

    def __init__(self, name: str, threads: int, waiting: int = MAX_WAITING) -> None:
        """threads: that work. waiting: pieces of work that may wait for one."""
        self._pool = ThreadPoolExecutor(threads, name)
        self._places = asyncio.Semaphore(threads)
        self._most = threads + waiting
        self.present = 0
        """Pieces of work that wait or are being done."""

    def require_room(self) -> None:
        """Raises Busy if the queue is full."""
        if self.present >= self._most:
            raise Busy(f"{self.present} requests are waiting already")

    async def run(self, work: Callable[[], T]) -> T:
        """What the work returns, done in a thread once it is its turn. Raises Busy at once if the queue is full. Work
        that is cancelled while it waits is not begun; once begun it ends by itself."""
        self.require_room()
        self.present += 1
        try:
            async with self._places:
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self.present -= 1

    def close(self) -> None:
        """Waits for what is being done."""
        self._pool.shutdown()
