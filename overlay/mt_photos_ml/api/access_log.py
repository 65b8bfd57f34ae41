# SPDX-License-Identifier: AGPL-3.0-only
"""The log: one line a request, with what the photo was and where the time went."""

import logging
import time
from textwrap import shorten

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("mt_photos_ml.access")


class AccessLogMiddleware:
    """Logs method, path, status, the fields that others added, and the total of milliseconds."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500  # what the framework answers to an error that nobody expected

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        except Exception as error:
            log_error(scope, error)
            raise
        finally:
            fields = [*log_fields(scope), f"total {(time.perf_counter() - started) * 1000:.0f} ms"]
            quiet = scope["path"] in ("/ping", "/check") and status == 200
            level = logging.DEBUG if quiet else logging.INFO
            path = scope["path"][:200].encode("unicode_escape").decode()  # a line break would forge a line of the log
            log.log(level, "%s %s %s %s", scope["method"], path, status, ", ".join(fields))


def log_fields(scope: Scope) -> list[str]:
    """What the line of this request says besides; add to it."""
    fields: list[str] = scope.setdefault("mt_photos_ml.log_fields", [])
    return fields


def log_error(scope: Scope, error: Exception) -> None:
    """Adds why the request failed."""
    log_fields(scope).append(shorten(str(error) or type(error).__name__, 120, placeholder=" …"))
