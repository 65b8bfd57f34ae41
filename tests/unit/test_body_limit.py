# SPDX-License-Identifier: AGPL-3.0-only
"""The limit of a body, declared or chunked, and bodies whose length two proxies could read differently."""

import json

import pytest
from starlette.types import Message, Receive, Scope, Send

from mt_photos_ml.api.errors import TooLarge
from mt_photos_ml.api.middleware.body_limit import BodyLimitMiddleware

pytestmark = pytest.mark.anyio
CHUNKED = {"transfer-encoding": "chunked"}


async def sent_to_limited(headers: dict[str, str], *pieces: int) -> list[Message]:
    """The reply of an app that counts the bytes of its body, limited to 1 MB. pieces: the bytes of each piece."""
    left, answers = list(pieces), list[Message]()

    async def receive() -> Message:
        assert left, "more was read than was sent"
        return {"type": "http.request", "body": bytes(left.pop(0)), "more_body": bool(left)}

    async def send(message: Message) -> None:
        answers.append(message)

    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        size, is_over = 0, False
        while not is_over:
            message = await receive()
            size, is_over = size + len(message["body"]), not message["more_body"]
        await send({"size": size})

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/ocr", "headers": raw}
    await BodyLimitMiddleware(count, 1_000_000)(scope, receive, send)
    return answers


async def test_a_body_at_the_limit_is_accepted_and_one_byte_more_is_refused() -> None:
    for headers in ({"content-length": "1000000"}, CHUNKED):
        assert await sent_to_limited(headers, 600_000, 400_000) == [{"size": 1_000_000}]
    start, body = await sent_to_limited({"content-length": "1000001"})  # nothing of it is read
    assert (start["status"], json.loads(body["body"])["msg"]) == (413, "the upload is over the limit of 1 MB")
    with pytest.raises(TooLarge, match="over the limit of 1 MB"):
        await sent_to_limited(CHUNKED, 999_999, 2, 1)


async def test_a_body_with_a_length_and_chunks_is_refused_and_its_connection_closed() -> None:
    start, body = await sent_to_limited({"content-length": "1", **CHUNKED}, 1)
    assert (start["status"], (b"connection", b"close") in start["headers"]) == (400, True)
    why = "the request has both Content-Length and Transfer-Encoding"
    assert json.loads(body["body"]) == {"result": [], "msg": why}
