# SPDX-License-Identifier: AGPL-3.0-only
"""Ends a process without losing requests: answers those in flight, and closes connections after a reply."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..replies import failure

log = logging.getLogger("mt_photos_ml")

FINISH_SECONDS = 50.0
"""From the signal to stop until the server must end, even if requests are still in flight."""

_DISCARD_SECONDS = 2.0  # to read the rest of a body that is refused
_REFUSE_SECONDS = 1.0  # before a photo is refused: a proxy would use up its retries on a quick refusal


class Lifecycle:
    """Whether the process is stopping or restarting.

    is_stopping: from the signal on. is_closed: new requests are refused, from `drain` seconds after the signal on.
    """

    def __init__(self, drain: float = 0.0) -> None:
        """drain: seconds for which requests are still accepted, so that a proxy can notice that the service stops."""
        self.is_stopping = self.is_closed = self.is_restarting = False
        self._drain = drain
        self.in_flight = 0
        self._end_server: Callable[[], object] = lambda: None

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Handles SIGTERM and SIGINT instead of uvicorn, which would close the listening socket at once.

        SIGTERM stops the service. SIGINT restarts the process: upstream's app sends it to its own process when idle.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def stop(number: int, frame: FrameType | None) -> None:
            if not self.is_stopping:
                self.is_stopping = True
                asyncio.run_coroutine_threadsafe(self._stop(), loop)

        sigterm = signal.signal(signal.SIGTERM, stop)
        if callable(sigterm):
            self._end_server = partial(sigterm, signal.SIGTERM, None)
        sigint = signal.signal(signal.SIGINT, lambda number, frame: self.restart())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, sigterm)
            signal.signal(signal.SIGINT, sigint)

    def restart(self) -> None:
        """Ends the server, so that another process takes its place."""
        if not (self.is_stopping or self.is_restarting):
            self.is_restarting = True
            self._end_server()

    async def _stop(self) -> None:
        if self._drain:
            log.info("stopping in %g s; until then photos are accepted, and /ready answers 503", self._drain)
            await asyncio.sleep(self._drain)
        self.is_closed = True
        if self.in_flight:
            log.info("stopping once %d requests are answered", self.in_flight)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_SECONDS - self._drain):
                while self.in_flight:
                    await asyncio.sleep(0.05)
        self._end_server()


class LifecycleMiddleware:
    """Counts the requests in flight. If the process is about to end, each reply closes its connection; if the service
    stops, new requests get 503."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app, self._lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lifecycle, headers = self._lifecycle, dict(scope["headers"])
        is_read = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"

        async def received() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = is_read or not message.get("more_body")
            return message

        async def sent(message: Message) -> None:
            ends = lifecycle.is_closed or lifecycle.is_restarting
            # if some of the body is unread, the client would see a broken connection instead of the reply
            if message["type"] == "http.response.start" and ends and is_read:
                others = [header for header in message.get("headers", ()) if header[0] != b"connection"]
                message = {**message, "headers": [*others, (b"connection", b"close")]}
            await send(message)

        if lifecycle.is_closed:
            if not is_read:
                await asyncio.sleep(_REFUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DISCARD_SECONDS):
                    while not is_read:
                        await received()
            await failure(503, "the service is stopping", retry_after=10)(scope, receive, sent)
            return
        lifecycle.in_flight += 1
        try:
            await self._app(scope, received, sent)
        finally:
            lifecycle.in_flight -= 1
