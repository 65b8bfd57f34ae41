# SPDX-License-Identifier: AGPL-3.0-only
"""How a process ends: what is in flight is answered, and no connection is closed under a client's next request."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Container, Iterator
from types import FrameType
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..replies import failure

log = logging.getLogger("mt_photos_ml")

LAST_ANSWERS = 50.0
"""Seconds that requests in flight have when the service stops."""
MOMENT = 1.0
"""Seconds that an idle connection stays open when the process ends, since a request may be on its way on it."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DISCARDED = 2.0  # seconds for the rest of a body that nobody wants


class Lifecycle:
    """Whether the process is about to end: to stop, or to be started afresh."""

    def __init__(self, restarts_on: Container[int] = ()) -> None:
        """restarts_on: signals that ask for another process; all others ask for an end."""
        self._restarts_on = restarts_on
        self.is_stopping = self.is_restarting = False
        self.in_flight = 0
        self._exit: Callable[[int, FrameType | None], Any] | None = None

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """For as long as the server runs, in whose place the signals are taken: it would refuse new clients at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, before = asyncio.get_running_loop(), {number: signal.getsignal(number) for number in _SIGNALS}

        def stop(number: int, frame: FrameType | None) -> None:
            if number in self._restarts_on:
                self.restart()
            elif self.is_stopping and callable(server := before[signal.Signals(number)]):
                server(number, frame)  # whoever asks twice does not want to wait
            else:
                self.is_stopping = True
                asyncio.run_coroutine_threadsafe(self._stop(), loop)

        server = before[signal.SIGTERM]
        self._exit = server if callable(server) else None
        for number in _SIGNALS:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def restart(self) -> None:
        """Has the server end, for another process to take its place."""
        if not (self.is_stopping or self.is_restarting):
            self.is_restarting = True
            self._end_server()

    async def _stop(self) -> None:
        if self.in_flight:
            log.info("stopping once %d requests are answered", self.in_flight)
        deadline = asyncio.get_running_loop().time() + LAST_ANSWERS
        while self.in_flight and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        self._end_server()

    def _end_server(self) -> None:
        if self._exit is not None:
            self._exit(signal.SIGTERM, None)


class LifecycleMiddleware:
    """Counts what is in flight. When the process is about to end, each reply closes its connection; and when it is for
    good, what comes then is answered 503."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app, self._lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lifecycle, is_read = self._lifecycle, not _has_body(scope)

        async def received() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = is_read or not message.get("more_body")
            return message

        async def sent(message: Message) -> None:
            ends = lifecycle.is_stopping or lifecycle.is_restarting
            # with some of the body unread, the client would see a broken connection and not the reply
            if message["type"] == "http.response.start" and ends and is_read:
                headers = [header for header in message.get("headers", ()) if header[0] != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        if lifecycle.is_stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DISCARDED):
                    while not is_read:
                        await received()
            await failure(503, "the service is stopping", {"retry-after": "10"})(scope, receive, sent)
            return
        lifecycle.in_flight += 1
        try:
            await self._app(scope, received, sent)
        finally:
            lifecycle.in_flight -= 1


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


class PatientH11Protocol(H11Protocol):
    """Uvicorn's connection, which does not close under a request that is on its way when the server ends."""

    def shutdown(self) -> None:
        self.loop.call_later(MOMENT, self._close)

    def _close(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()
