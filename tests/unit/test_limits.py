# SPDX-License-Identifier: AGPL-3.0-only
"""How much is taken at once: the queue, of which every place is given back, and the length of a body."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.errors import Busy, TooLarge
from mt_photos_ml.api.middleware.body_limit import BodyLimitMiddleware, Queue
from service import running

pytestmark = pytest.mark.anyio


async def test_so_many_are_inside_at_once_and_one_too_many_is_turned_away() -> None:
    queue, inside, most = Queue(2, 3), 0, 0
    leave = asyncio.Event()

    async def guest() -> None:
        nonlocal inside, most
        async with queue.place():
            inside += 1
            most = max(most, inside)
            await leave.wait()
            inside -= 1

    for _ in range(2):
        leave.clear()
        guests = [asyncio.create_task(guest()) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match=r"^5 requests are waiting already$"):
            await guest()
        leave.set()
        await asyncio.gather(*guests)
    assert most == 2


async def test_a_guest_who_gives_up_or_fails_leaves_the_place_free() -> None:
    queue = Queue(1, 1)

    async def guest(error: Exception | None = None) -> None:
        async with queue.place():
            await asyncio.sleep(0)
            if error:
                raise error

    inside, waiting = asyncio.create_task(guest(ValueError("no"))), asyncio.create_task(guest())
    await asyncio.sleep(0)
    waiting.cancel()
    results = await asyncio.gather(inside, waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, asyncio.CancelledError]
    await guest()


def test_a_body_over_the_limit_is_413_whether_declared_or_not(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path, {**demo_environment(cache), "MAX_UPLOAD_MB": "1"}) as service, service.client() as client:
        large = b"x" * 1_200_000
        declared = client.post("/ocr", files={"file": large})
        type_ = "multipart/form-data; boundary=b"
        head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        chunked = client.post("/ocr", content=iter([head, large]), headers={"content-type": type_})
        for answer in (declared, chunked):
            assert answer.status_code == 413
            assert answer.json() == {"result": [], "msg": "the upload is over the limit of 1 MB"}


async def sent_to(app: BodyLimitMiddleware, headers: dict[str, str], pieces: Sequence[bytes] = ()) -> list[Message]:
    """What is answered to a request with these headers and this body."""
    left, answers = list(pieces), list[Message]()

    async def receive() -> Message:
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        answers.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": "POST", "path": "/ocr", "headers": raw}, receive, send)
    return answers


async def count(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that reads all, until the client is gone, and answers with the number of bytes."""
    if scope["type"] != "http":
        await send({"type": scope["type"]})
        return
    size = 0
    while (message := await receive())["type"] == "http.request":
        size += len(message["body"])
    await send({"size": size})


LIMITED = BodyLimitMiddleware(count, 1_000_000)


@pytest.mark.parametrize("pieces", [[b"x" * 1_000_000], [b"x" * 600_000, b"x" * 400_000], []])
async def test_a_body_of_just_the_limit_is_taken(pieces: list[bytes]) -> None:
    length = sum(map(len, pieces))
    assert await sent_to(LIMITED, {"content-length": str(length)}, pieces) == [{"size": length}]
    assert await sent_to(LIMITED, {"transfer-encoding": "chunked"}, pieces) == [{"size": length}]
    assert await sent_to(LIMITED, {}, pieces) == [{"size": length}]


async def test_a_byte_more_is_refused_before_it_is_read_or_as_soon_as_it_comes() -> None:
    start, body = await sent_to(LIMITED, {"content-length": "1000001"})
    assert start["status"] == 413
    assert json.loads(body["body"])["msg"] == "the upload is over the limit of 1 MB"
    with pytest.raises(TooLarge, match="over the limit of 1 MB"):
        await sent_to(LIMITED, {"transfer-encoding": "chunked"}, [b"x" * 999_999, b"xx"])


async def test_a_body_with_a_length_and_chunks_as_well_is_refused() -> None:
    start, body = await sent_to(LIMITED, {"content-length": "1", "transfer-encoding": "chunked"}, [b"x"])
    assert start["status"] == 400
    assert (b"connection", b"close") in start["headers"]
    assert json.loads(body["body"]) == {"result": [], "msg": "a body has a length or chunks, not both"}


async def test_what_is_no_request_has_no_body_to_be_limited() -> None:
    answers: list[Message] = []

    async def send(message: Message) -> None:
        answers.append(message)

    async def receive() -> Message:
        raise AssertionError

    await LIMITED({"type": "lifespan"}, receive, send)
    assert answers == [{"type": "lifespan"}]
