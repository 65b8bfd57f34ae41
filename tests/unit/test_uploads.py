# SPDX-License-Identifier: AGPL-3.0-only
"""Uploads on their way in: how long one may be silent, how much all may hold, which one gives way."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from mt_photos_ml.api import uploads as module
from mt_photos_ml.api.errors import TooSlow
from mt_photos_ml.api.uploads import Uploads
from mt_photos_ml.engine.workers import Busy

pytestmark = pytest.mark.anyio
Outcome = tuple[str, float]


@pytest.fixture(autouse=True)
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 s without a byte in place of 30, 0.3 s in place of 2, and 6 uploads in place of 512."""
    monkeypatch.setattr(module, "UPLOAD_IDLE_TIMEOUT", 1.0)
    monkeypatch.setattr(module, "YIELD_SECONDS", 0.3)
    monkeypatch.setattr(module, "MAX_UPLOADS", 6)


def upload(*pieces: tuple[float, int], end: str = "http.request") -> Request:
    """A request whose body comes in pieces of so many bytes, each so many seconds after the one before.

    end: the type of its last message; if it is empty, the client goes silent.
    """
    left = list(pieces)

    async def receive() -> Message:
        if left:
            seconds, size = left.pop(0)
            await asyncio.sleep(seconds)
            return {"type": "http.request", "body": bytes(size), "more_body": True}
        await asyncio.sleep(0 if end else 60)
        return {"type": end}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


async def outcome(uploads: Uploads, request: Request, answering: float = 0) -> Outcome:
    """What became of it, and when. answering: seconds from when all of it was there until it is answered."""
    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        async with uploads.receive(request) as pieces:
            size = sum([len(piece) async for piece in pieces])
            seconds = clock() - began
            await asyncio.sleep(answering)
            return f"{size} bytes", seconds
    except (TooSlow, Busy) as error:
        return type(error).__name__, clock() - began


async def assert_outcomes(max_bytes: int, *expected: tuple[Request, Outcome], answering: float = 0) -> None:
    """Of requests that begin at once, in an Uploads of so many bytes."""
    uploads = Uploads(max_bytes)
    found = await asyncio.gather(*(outcome(uploads, request, answering) for request, _ in expected))
    assert [what for what, _ in found] == [what for _, (what, _) in expected]
    assert [when for _, when in found] == pytest.approx([when for _, (_, when) in expected], abs=0.25)
    assert (uploads.held_bytes, uploads.coming) == (0, 0)


async def test_an_upload_may_pause_so_long_and_has_fifty_thousand_bytes_a_second() -> None:
    dripping = [(0.1, 1)] * 60
    await assert_outcomes(
        1 << 30,
        (upload(end=""), ("TooSlow", 1)),
        (upload((0.6, 5_000_000), end=""), ("TooSlow", 1.6)),
        (upload((0.7, 10)), ("10 bytes", 0.7)),
        (upload(*dripping), ("TooSlow", 1)),
        (upload((0, 50_000), *dripping), ("TooSlow", 2)),
    )


async def test_if_there_is_no_room_the_upload_that_was_silent_longest_goes_and_no_other() -> None:
    await assert_outcomes(
        110,
        (upload((0.2, 30), end=""), ("TooSlow", 1)),
        (upload((0, 30), end=""), ("TooSlow", 0.5)),
        (upload((0.4, 30), end=""), ("TooSlow", 1)),
        (upload((0, 5), *[(0.1, 1)] * 8), ("13 bytes", 0.8)),
        (upload((0.5, 30)), ("30 bytes", 0.5)),
    )


async def test_an_upload_without_room_is_refused_unless_one_is_silent() -> None:
    def first() -> Request:
        return upload((0, 60), (0.8, 1))

    await assert_outcomes(100, (first(), ("61 bytes", 0.8)), (upload((0.05, 41)), ("Busy", 0.05)))
    await assert_outcomes(100, (first(), ("TooSlow", 0.5)), (upload((0.5, 41)), ("41 bytes", 0.5)))


async def test_an_upload_holds_its_room_until_it_is_answered_and_one_that_holds_nothing_need_not_give_way() -> None:
    late, later = (upload((0.4, 1)), ("Busy", 0.4)), (upload((0.9, 1)), ("1 bytes", 0.9))
    await assert_outcomes(100, (upload((0, 100)), ("100 bytes", 0)), late, later, answering=0.65)


@pytest.mark.parametrize(("seconds", "expected", "first"), [(0.05, "Busy", "2 bytes"), (0.5, "1 bytes", "TooSlow")])
async def test_an_upload_too_many_is_refused_unless_one_is_silent(seconds: float, expected: str, first: str) -> None:
    uploads = Uploads(10_000)
    tasks = [asyncio.create_task(outcome(uploads, upload((0, 1), (0.9, 1)))) for _ in range(6)]
    await asyncio.sleep(seconds)
    assert uploads.coming == 6
    assert (await outcome(uploads, upload((0, 1))))[0] == expected
    assert [what for what, _ in await asyncio.gather(*tasks)] == [first, *["2 bytes"] * 5]


@pytest.mark.parametrize("end", ["http.disconnect", ""], ids=["hangs up", "is cancelled"])
async def test_an_upload_that_breaks_off_holds_nothing(end: str) -> None:
    uploads = Uploads(100)
    task = asyncio.create_task(outcome(uploads, upload((0, 60), (0.3, 0), end=end)))
    await asyncio.sleep(0.1)
    assert (uploads.held_bytes, uploads.coming) == (60, 1)
    if not end:
        task.cancel()
    with pytest.raises((ClientDisconnect, asyncio.CancelledError)):
        await task
    assert (uploads.held_bytes, uploads.coming) == (0, 0)
