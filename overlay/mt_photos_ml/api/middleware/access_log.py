# SPDX-License-Identifier: AGPL-3.0-only
"""The access log: one line a request, with the photo's kind and size and the time of each step."""

import logging
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..trace import RequestTrace, begin_trace

log = logging.getLogger("mt_photos_ml.access")

_QUIET_PATHS = ("/ping", "/check", "/metrics", "/api/status")  # which monitors request all the time


class AccessLogMiddleware:
    """Begins the trace of each request. Writes it into the reply's headers and the log, and calls the observers."""

    def __init__(self, app: ASGIApp, instance: str, observers: Sequence[Callable[[RequestTrace], None]] = ()) -> None:
        """instance: the name of this service, for the header X-Instance."""
        self._app, self._instance, self._observers = app, instance.encode(), observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = begin_trace(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                told = {b"x-request-id": trace.id.encode(), b"server-timing": trace.timing().encode()}
                added = {**told, b"x-instance": self._instance}
                message = {**message, "headers": [*message.get("headers", ()), *added.items()]}
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
            is_quiet = trace.path == "/ready" or (trace.path in _QUIET_PATHS and trace.status == 200)
            level = logging.DEBUG if is_quiet else logging.INFO
            log.log(level, "%s", trace.line(), extra={"trace": trace})
