# SPDX-License-Identifier: AGPL-3.0-only
"""The path of a request as its route has it, whatever people type as the address of the service."""

import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

_EXTRA = re.compile("^https?://[^/]*|/(?=/)", re.IGNORECASE)


class PathsMiddleware:
    """Takes `//clip/img`, `/Clip/Img/` and `http://host:8060/clip/img`, as some proxies have it, for `/clip/img`.

    Comes before the other middleware, so that the key, the log and the route go by the same path.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        """paths: the ones that may have capitals and a slash at the end; of others, such as upstream's, these count."""
        self._app, self._paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = _EXTRA.sub("", scope["path"]) or "/"
            plain = path.lower().rstrip("/")
            scope = {**scope, "path": plain if plain in self._paths else path}
        await self._app(scope, receive, send)
