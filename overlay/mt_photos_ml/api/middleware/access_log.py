# SPDX-License-Identifier: AGPL-3.0-only
"""The log: one line a request, with what the photo was and where the time went."""

import logging
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..trace import RequestTrace, begin_trace

log = logging.getLogger("mt_photos_ml.access")

_QUIET_PATHS = ("/ping", "/check", "/metrics", "/api/status")  # what monitors ask for all the time


class AccessLogMiddleware:
    """Begins the trace of each request; tells it to the client in two headers, to the log and to the observers."""

    def __init__(self, app: ASGIApp, observers: Sequence[Callable[[RequestTrace], None]] = ()) -> None:
        self._app, self._observers = app, observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = begin_trace(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                added = ((b"x-request-id", trace.id.encode()), (b"server-timing", trace.timing().encode()))
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            trace.fail(error)
            raise
        finally:
            trace.total_ms = trace.elapsed_ms()
            for observe in self._observers:
                observe(trace)
            level = logging.DEBUG if trace.path in _QUIET_PATHS and trace.status == 200 else logging.INFO
            log.log(level, "%s", trace.line(), extra={"trace": trace})
