# SPDX-License-Identifier: AGPL-3.0-only
"""Uploads in progress: how long one may be silent, how much memory all may hold, which one is ended for another."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

import clock
from mt_photos_ml.api.errors import TooSlow
from mt_photos_ml.api.uploads import MAX_UPLOADS, Uploads
from mt_photos_ml.engine.workers import Busy

FOR_EVER = 1e6


def upload(*pieces: tuple[float, int], ends: bool = True) -> Request:
    """A request. pieces: seconds since the piece before, and bytes. ends: whether the body ends after them."""
    left = list(pieces)

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(0 if ends else FOR_EVER)
            return {"type": "http.request", "body": b"", "more_body": False}
        seconds, size = left.pop(0)
        await asyncio.sleep(seconds)
        return {"type": "http.request", "body": bytes(size), "more_body": True}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


async def outcome(uploads: Uploads, request: Request, answering: float = 0) -> tuple[str, float]:
    """How the upload ended, and when. answering: seconds from its end to its reply."""
    try:
        async with uploads.receive(request) as pieces:
            size = sum([len(piece) async for piece in pieces])
            when = clock.now()
            await asyncio.sleep(answering)
            return f"{size} bytes", when
    except (TooSlow, Busy) as error:
        return type(error).__name__, clock.now()


def outcomes(max_bytes: int, *requests: Request, answering: float = 0) -> list[tuple[str, float]]:
    """The outcomes of requests that begin at the same time."""
    uploads = Uploads(max_bytes)

    async def scene() -> list[tuple[str, float]]:
        return await asyncio.gather(*(outcome(uploads, request, answering) for request in requests))

    found = clock.run(scene())
    assert (uploads.held_bytes, uploads.coming) == (0, 0)
    return found


def drips(first: int) -> Request:
    return upload((0, first), *[(10, 1)] * 100)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (upload(ends=False), ("TooSlow", 30)),
        (upload((29, 5_000_000), ends=False), ("TooSlow", 59)),
        (upload((29, 10)), ("10 bytes", 29)),
        (drips(0), ("TooSlow", 30)),
        (drips(10_000_000), ("TooSlow", 230)),
    ],
    ids=["silent", "silent later", "late", "drips", "drips later"],
)
def test_an_upload_ends_after_thirty_silent_seconds_or_below_fifty_kilobytes_a_second(
    request_: Request, expected: tuple[str, float]
) -> None:
    assert outcomes(1 << 30, request_) == [expected]


def test_if_memory_is_full_only_the_upload_that_was_silent_longest_is_ended() -> None:
    silent = [upload((start, 30), ends=False) for start in (1, 0, 2)]
    lively = upload((0, 5), *[(1, 1)] * 20)
    assert outcomes(100, *silent, lively, upload((5, 30))) == [
        ("TooSlow", 30),
        ("TooSlow", 5),
        ("TooSlow", 30),
        ("25 bytes", 20),
        ("30 bytes", 5),
    ]


def test_if_memory_is_full_and_no_upload_is_silent_for_two_seconds_the_one_that_needs_more_is_refused() -> None:
    assert outcomes(100, upload((0, 50), (1.9, 50)), upload((1.9, 51))) == [("100 bytes", 1.9), ("Busy", 1.9)]
    assert outcomes(100, upload((0, 60), (9, 1)), upload((1.9, 41)))[1] == ("Busy", 1.9)
    assert outcomes(100, upload((0, 60), (9, 1)), upload((2.1, 41)))[1] == ("41 bytes", 2.1)


def test_an_upload_holds_its_memory_until_its_reply_and_one_that_holds_none_is_not_ended() -> None:
    requests = upload((0, 100)), upload((10, 1)), upload((28, 0), (1, 1))
    assert outcomes(100, *requests, answering=28.5)[1:] == [("Busy", 10), ("1 bytes", 29)]


def test_one_upload_too_many_is_refused_unless_another_is_silent() -> None:
    async def scene(seconds: float) -> list[tuple[str, float]]:
        uploads = Uploads(10_000)
        coming = [outcome(uploads, upload((0, 1), (5, 1))) for _ in range(MAX_UPLOADS)]
        tasks = [asyncio.create_task(one) for one in coming]
        await asyncio.sleep(seconds)
        assert uploads.coming == MAX_UPLOADS
        last = await outcome(uploads, upload((0, 1)))
        return [last, *await asyncio.gather(*tasks)]

    assert clock.run(scene(1)) == [("Busy", 1), *[("2 bytes", 5)] * MAX_UPLOADS]
    found = clock.run(scene(3))
    assert found[:2] == [("1 bytes", 3), ("TooSlow", 3)]
    assert found[2:] == [("2 bytes", 5)] * (MAX_UPLOADS - 1)
