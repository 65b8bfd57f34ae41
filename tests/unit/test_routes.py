# SPDX-License-Identifier: AGPL-3.0-only
"""The routes over HTTP: replies, tasks that are off, a full queue, slow clients and clients that hang up, restarts."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from demo.pictures import colour_photo
from inside import Inside, asking, eventually
from mt_photos_ml import version
from mt_photos_ml.tasks import clip
from photos import jpeg
from trust.traffic import form

pytestmark = pytest.mark.anyio
RED = jpeg(colour_photo("red", (64, 48)))
BODY, FORM = form(RED)
VISUAL, TEXTUAL = "clip/demo-colours/visual", "clip/demo-colours/textual"


class Gate:
    """Photos wait at it in their workers, before the model sees them, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open, self.reached, encode = threading.Event(), 0, clip.encode_photo

        def wait(*given: Any) -> clip.Float:
            self.reached += 1
            assert self._open.wait(60)
            return encode(*given)

        monkeypatch.setattr(clip, "encode_photo", wait)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def test_restart_leaves_the_models_in_use_and_loads_those_that_are_preloaded(cache: Path) -> None:
    inside = Inside(cache, MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL="demo-colours")
    store = inside.engine.store
    async with asking(inside) as client:
        for route, sent in (("/clip/img", {"files": {"file": RED}}), ("/clip/txt", {"json": {"text": "red"}})):
            await client.post(route, **sent)
        assert (await client.post("/check")).json()["loaded"] == [TEXTUAL, VISUAL]
        assert (await client.post("/restart")).json() == {"result": "pass"}
        assert store.loaded == [TEXTUAL, VISUAL], "they were just used"
        await store.drop_idle(0, but_preloaded=False)
        assert (await client.post("/restart")).json() == {"result": "pass"}
        await eventually(lambda: store.loaded == [TEXTUAL])


async def test_check_says_what_mt_photos_asks_for(cache: Path) -> None:
    settings = {"CLIP_VISUAL_MODEL_NAME": "RN50__openai", "FACE_MIN_SCORE": 0.4, "TASKS": "ocr,clip"}
    async with asking(Inside(cache, ["there is no key"], **settings)) as client:
        told = (await client.post("/check")).json()
    assert (told["recognition_model"], told["facial_min_score"]) == ("demo-faces", 0.4)
    assert (told["clip_model"], told["clip_vector_length"]) == ("RN50__openai", 1024)
    assert (told["ocr_model"], told["tasks"], told["loaded"]) == ("PP-OCRv6_small", ["clip", "ocr"], [])
    assert (told["demo"], told["warnings"], told["version"]) == (True, ["there is no key"], version())


async def unread() -> AsyncIterator[bytes]:
    raise AssertionError("the upload was read")
    yield b""


@pytest.mark.parametrize(
    ("route", "task"), [("/ocr", "ocr"), ("/clip/img", "clip"), ("/clip/txt", "clip"), ("/represent", "faces")]
)
async def test_a_task_that_is_off_is_404_before_the_upload_is_read(cache: Path, route: str, task: str) -> None:
    tasks = ",".join({"ocr", "clip", "faces"} - {task})
    async with asking(Inside(cache, TASKS=tasks)) as client:
        answer = await client.post(route, content=unread(), headers={"content-type": FORM})
        message = f"the task {task} is switched off (TASKS)"
        assert (answer.status_code, answer.json()) == (404, {"result": [], "msg": message})


async def test_a_search_is_answered_while_photos_are_indexed_and_a_full_queue_is_503_before_an_upload_is_read(
    cache: Path, gate: Gate
) -> None:
    inside = Inside(cache, MACHINE_LEARNING_WORKERS=64)  # of which each has room for one photo that waits
    async with asking(inside) as client:
        photos = [asyncio.create_task(client.post("/clip/img", files={"file": RED})) for _ in range(2)]
        await eventually(lambda: gate.reached == 1 and inside.engine.waiting == {"photos": 2, "texts": 0})
        assert (await client.post("/clip/txt", json={"text": "red"})).status_code == 200
        answer = await client.post("/ocr", content=unread(), headers={"content-type": FORM})
        assert (answer.status_code, answer.json()["msg"]) == (503, "2 requests are waiting already")
        gate.open()
        assert [answer.status_code for answer in await asyncio.gather(*photos)] == [200, 200]
    assert (inside.engine.waiting, inside.uploads.held_bytes) == ({"photos": 0, "texts": 0}, 0)


async def test_the_photo_of_a_client_that_hangs_up_is_skipped_and_its_place_is_free(cache: Path, gate: Gate) -> None:
    inside, hang_up, sent = Inside(cache), asyncio.Event(), list[Any]()
    messages = [{"type": "http.request", "body": BODY, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", FORM.encode())]
    scope = {"type": "http", "method": "POST", "path": "/clip/img", "headers": headers, "query_string": b""}
    async with asking(inside) as client:
        first = asyncio.create_task(client.post("/clip/img", files={"file": RED}))
        await eventually(lambda: gate.reached == 1)
        second = asyncio.create_task(inside.app(scope, receive, send))
        await eventually(lambda: inside.engine.waiting["photos"] == 2)
        hang_up.set()
        await second
        await eventually(lambda: inside.engine.waiting["photos"] == 1)
        assert (sent[0]["status"], inside.trace.reason) == (400, "ClientDisconnect")
        gate.open()
        assert (await first).status_code == 200
    assert (gate.reached, inside.uploads.held_bytes) == (1, 0)
