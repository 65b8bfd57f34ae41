# SPDX-License-Identifier: AGPL-3.0-only
"""Makes requests count as activity, for a server that ends its worker when there is none."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from starlette.types import ASGIApp, Receive, Scope, Send

_IDLE = ("/", "/ping", "/check")  # somebody who only asks whether we are there keeps nothing in memory


class Active:
    """Handles a request that does work within a context."""

    def __init__(self, app: ASGIApp, activity: Callable[[], AbstractContextManager[None]]) -> None:
        self._app, self._activity = app, activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _IDLE:
            await self._app(scope, receive, send)
            return
        with self._activity():
            await self._app(scope, receive, send)
