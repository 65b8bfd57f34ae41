# SPDX-License-Identifier: AGPL-3.0-only
"""How much is taken at once: the length of a body, and how many requests wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import Busy, TooLarge, answer
from ..replies import nothing


class BodyLimitMiddleware:
    """Answers 413 to a body over the limit: by its declared length before it is read, else as soon as it is over.

    One with a length and chunks as well is refused: a proxy in front may go by the other one, and what is the end of
    the body to the one is the beginning of a hidden request to the other (RFC 9112, 6.3).
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """limit: bytes."""
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        declared = headers.get(b"content-length", b"0")
        if b"content-length" in headers and b"transfer-encoding" in headers:
            await nothing(400, "a body has a length or chunks, not both", {"connection": "close"})(scope, receive, send)
            return
        if int(declared) > self._limit:
            await answer(TooLarge(self._limit))(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise TooLarge(self._limit)
            return message

        await self._app(scope, counted, send)


class Queue:
    """Lets so many in at once, so many more wait, and turns the rest away."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._most = at_once + waiting
        self.present = 0

    def check(self) -> None:
        """Raises Busy where the queue is full."""
        if self.present >= self._most:
            raise Busy(f"{self.present} requests are waiting already")

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the queue, then one inside. Raises Busy at once where the queue is full."""
        self.check()
        self.present += 1
        try:
            async with self._places:
                yield
        finally:
            self.present -= 1
