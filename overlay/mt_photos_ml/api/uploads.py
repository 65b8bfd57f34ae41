# SPDX-License-Identifier: AGPL-3.0-only
"""Bodies on their way in: no worker waits for one, and who stalls loses only his own."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

from starlette.requests import Request

from .errors import Busy, TooSlow

SILENCE = 30.0
"""Seconds without a byte after which an upload is given up."""
SILENCE_IN_A_CROWD = 2.0
"""The same while others wait for room."""
MOST = 512
"""Uploads at once; one more is answered 503."""

_CROWD = 256  # uploads at once, beyond which they are a crowd
_SLOWEST = 50_000  # bytes a second that an upload must bring on average, once it has taken that long


@dataclass(eq=False)
class _Body:
    """size: bytes of it that are held. started, last: when it began, and when something came, by the loop's clock.

    wanted: bytes for which it waits until there is room.
    """

    started: float
    last: float
    size: int = 0
    timeout: asyncio.Timeout | None = None
    wanted: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def due(self, silence: float) -> float:
        """When it is given up if nothing comes until then."""
        return min(self.last, self.started + self.size / _SLOWEST) + silence


class Bodies:
    """The bodies of all requests, from their first byte until the request is answered."""

    def __init__(self, limit: int) -> None:
        """limit: bytes of all together; the one that began first may go beyond, so that one always ends."""
        self._limit = limit
        self.held = 0
        self._waiting: dict[_Body, None] = {}
        self._reading: dict[_Body, None] = {}
        self._silence = SILENCE

    @property
    def present(self) -> int:
        """How many are coming in."""
        return len(self._reading)

    @contextlib.asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """The pieces of a request's body, which count as held until the context ends. Raises Busy.

        The pieces raise TooSlow where nothing, or next to nothing, comes.
        """
        if len(self._reading) >= MOST:
            raise Busy(f"{MOST} uploads are coming in already")
        now = asyncio.get_running_loop().time()
        body = _Body(now, now)
        self._reading[body] = None
        self._reschedule()
        try:
            yield self._pieces(body, request)
        finally:
            self.held -= body.size
            self._ended(body)

    async def _pieces(self, body: _Body, request: Request) -> AsyncGenerator[bytes, None]:
        pieces = request.stream()
        while True:
            try:
                async with asyncio.timeout_at(body.due(self._silence)) as body.timeout:
                    piece = await anext(pieces)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise TooSlow from None
            finally:
                body.timeout = None
            if piece:  # the last one is empty
                await self._take(body, len(piece))
                yield piece
        self._ended(body)

    async def _take(self, body: _Body, size: int) -> None:
        """Waits for room; that time is not held against the upload."""
        clock = asyncio.get_running_loop().time
        body.last = began = clock()
        body.wanted = size
        body.room.clear()
        self._waiting[body] = None
        self._give_room()
        try:
            await body.room.wait()
        finally:
            self._waiting.pop(body, None)
            self._reschedule()
        body.started += clock() - began
        body.last = clock()

    def _give_room(self) -> None:
        """To who holds least, that no photo waits for many that stall, and always to the one that began first."""
        first = next(iter(self._reading), None)
        for body in sorted(self._waiting, key=lambda body: body.size):
            if body is first or self.held + body.wanted <= self._limit:
                del self._waiting[body]
                body.size += body.wanted
                self.held += body.wanted
                body.room.set()
        self._reschedule()

    def _ended(self, body: _Body) -> None:
        self._reading.pop(body, None)
        self._give_room()

    def _reschedule(self) -> None:
        """Who waits for a byte is given as long as there is time now."""
        silence = SILENCE_IN_A_CROWD if self._waiting or len(self._reading) > _CROWD else SILENCE
        if silence == self._silence:
            return
        self._silence = silence
        for body in self._reading:
            if body.timeout is not None and not body.timeout.expired():
                body.timeout.reschedule(body.due(silence))
