# SPDX-License-Identifier: AGPL-3.0-only
"""The key: every request needs it, but for the page for people and the ping."""

import hmac
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from .replies import reply

_OPEN = {("GET", "/"), ("HEAD", "/"), ("GET", "/ping"), ("HEAD", "/ping")}


class ApiKeyMiddleware:
    """Answers 401 to a request without the key before a byte of its body is read."""

    def __init__(self, app: ASGIApp, key: str, also_open: Collection[tuple[str, str]] = ()) -> None:
        """also_open: methods and paths that need no key besides."""
        self._app, self._key, self._open = app, key.encode(), {*_OPEN, *also_open}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope.get("method"), scope["path"]) in self._open or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await reply({"detail": "Invalid API key"}, 401)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _has_key(self, scope: Scope) -> bool:
        keys = [value for name, value in scope["headers"] if name == b"api-key"]
        return len(keys) == 1 and hmac.compare_digest(keys[0], self._key)
