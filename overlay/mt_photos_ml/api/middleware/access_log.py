# SPDX-License-Identifier: AGPL-3.0-only
"""The log: one line a request, with what the photo was and where the time went."""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...dashboard.metrics import Metrics
from ..record import begin

log = logging.getLogger("mt_photos_ml.access")


class AccessLogMiddleware:
    """Begins the record of each request, tells it to the client in two headers, and to the log and the metrics at the
    end."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = begin(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                told = ((b"x-request-id", record.id.encode()), (b"server-timing", record.timing().encode()))
                message = {**message, "headers": [*message.get("headers", ()), *told]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            record.fail(error)
            raise
        finally:
            record.total_ms = record.elapsed_ms()
            self._metrics.observe(record)
            level = logging.DEBUG if _is_quiet(record.path) and record.status == 200 else logging.INFO
            log.log(level, "%s", record.line(), extra={"record": record})


def _is_quiet(path: str) -> bool:
    """What watches ask for all the time."""
    return path in ("/ping", "/check", "/metrics", "/api/status")
