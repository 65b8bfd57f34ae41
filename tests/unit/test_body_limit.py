# SPDX-License-Identifier: AGPL-3.0-only
"""The limit of a body, declared or chunked, and bodies of which two proxies could read two lengths."""

import json
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.errors import TooLarge
from mt_photos_ml.api.middleware.body_limit import BodyLimitMiddleware
from service import running

CHUNKED = {"transfer-encoding": "chunked"}


def test_a_body_over_the_limit_is_413_whether_declared_or_not(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path, {**demo_environment(cache), "MAX_UPLOAD_MB": "1"}) as service, service.client() as client:
        large = b"x" * 1_200_000
        declared = client.post("/ocr", files={"file": large})
        head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        type_ = {"content-type": "multipart/form-data; boundary=b"}
        for answer in (declared, client.post("/ocr", content=iter([head, large]), headers=type_)):
            assert answer.status_code == 413
            assert answer.json() == {"result": [], "msg": "the upload is over the limit of 1 MB"}


async def sent_to_limited(headers: dict[str, str], *pieces: int) -> list[Message]:
    """The answer of an app with a limit of 1 MB, which counts the bytes that it reads. pieces: bytes of each."""
    left, answers = list(pieces), list[Message]()

    async def receive() -> Message:
        assert left, "more was read than was sent"
        return {"type": "http.request", "body": bytes(left.pop(0)), "more_body": bool(left)}

    async def send(message: Message) -> None:
        answers.append(message)

    async def count(scope: Scope, receive: Receive, send: Send) -> None:
        message: Message = {"more_body": True}
        size = 0
        while message["more_body"]:
            message = await receive()
            size += len(message["body"])
        await send({"size": size})

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/ocr", "headers": raw}
    await BodyLimitMiddleware(count, 1_000_000)(scope, receive, send)
    return answers


@pytest.mark.anyio
async def test_a_body_of_just_the_limit_is_taken_and_a_byte_more_is_refused() -> None:
    for headers in ({"content-length": "1000000"}, CHUNKED):
        assert await sent_to_limited(headers, 600_000, 400_000) == [{"size": 1_000_000}]
    start, body = await sent_to_limited({"content-length": "1000001"})  # of which nothing is read
    assert (start["status"], json.loads(body["body"])["msg"]) == (413, "the upload is over the limit of 1 MB")
    with pytest.raises(TooLarge, match="over the limit of 1 MB"):
        await sent_to_limited(CHUNKED, 999_999, 2, 1)


@pytest.mark.anyio
async def test_a_body_with_a_length_and_chunks_is_refused_and_its_connection_closed() -> None:
    start, body = await sent_to_limited({"content-length": "1", **CHUNKED}, 1)
    assert (start["status"], (b"connection", b"close") in start["headers"]) == (400, True)
    assert json.loads(body["body"]) == {"result": [], "msg": "a body has a length or chunks, not both"}
