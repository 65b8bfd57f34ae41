# SPDX-License-Identifier: AGPL-3.0-only
"""Corrects the path of a request if the service's address was entered in an unusual way."""

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

_EXTRA = re.compile("^https?://[^/]*|/(?=/)", re.IGNORECASE)


class PathsMiddleware:
    """Reads `//clip/img`, `/Clip/Img/` and `http://host:8060/clip/img`, which some proxies send, as `/clip/img`.

    Runs before the other middleware, so that the key, the log and the route use the same path.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        """paths: those that may have capitals and a slash at the end. In others, such as upstream's, both count."""
        self._app, self._paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = _EXTRA.sub("", scope["path"]) or "/"
            plain = path.lower().rstrip("/")
            scope = {**scope, "path": plain if plain in self._paths else path}
        await self._app(scope, receive, send)
