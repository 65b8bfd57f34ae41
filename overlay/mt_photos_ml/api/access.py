# SPDX-License-Identifier: AGPL-3.0-only
"""The log: one line a request, with what the photo was and where the time went."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("mt_photos_ml.access")

_NOTES = "mt_photos_ml.notes"


class AccessLog:
    """Logs method, path, status, what the route noted, and the total of milliseconds."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        words = notes(scope)

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            words.append(f"total {(time.perf_counter() - started) * 1000:.0f} ms")
            quiet = scope["path"] in ("/ping", "/check") and status == 200
            level = logging.DEBUG if quiet else logging.INFO
            path = scope["path"][:200].encode("unicode_escape").decode()  # a line break would forge a line of the log
            log.log(level, "%s %s %s %s", scope["method"], path, status, ", ".join(words))


def notes(scope: Scope) -> list[str]:
    """What the line of this request says besides; add to it."""
    words: list[str] = scope.setdefault(_NOTES, [])
    return words
