# SPDX-License-Identifier: AGPL-3.0-only
"""The limit on the length of a request's body."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import TooLarge, answer
from ..replies import failure


class BodyLimitMiddleware:
    """Answers 413 to a body over the limit: before reading it if it declares its length, otherwise once it is over.

    Rejects Content-Length together with Transfer-Encoding: proxies disagree which counts (request smuggling,
    RFC 9112, 6.3).
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        """limit: bytes."""
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        if b"content-length" in headers and b"transfer-encoding" in headers:
            why = "the request has both Content-Length and Transfer-Encoding"
            await failure(400, why, {"connection": "close"})(scope, receive, send)
            return
        if int(headers.get(b"content-length", b"0")) > self._limit:
            await answer(TooLarge(self._limit))(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                raise TooLarge(self._limit)
            return message

        await self._app(scope, counted, send)
