# SPDX-License-Identifier: AGPL-3.0-only
"""The queue: so many inside, so many waiting, the rest turned away, and every place given back."""

import asyncio
from pathlib import Path

import pytest

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.errors import Busy
from mt_photos_ml.api.limits import Queue
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

    guests = [asyncio.create_task(guest()) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await guest()
    leave.set()
    await asyncio.gather(*guests)
    assert most == 2
    await guest()


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
