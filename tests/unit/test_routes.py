# SPDX-License-Identifier: AGPL-3.0-only
"""The routes: restart, /check and /ready, tasks that are off, a full queue, and clients that disconnect."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.pictures import colour_photo
from hub_server import HubServer
from inside import Inside, asking, eventually
from mt_photos_ml import version
from mt_photos_ml.settings import DEFAULT_CLIP
from mt_photos_ml.tasks import clip
from photos import jpeg
from trust.traffic import form

pytestmark = pytest.mark.anyio
RED = jpeg(colour_photo("red", (64, 48)))
BODY, FORM = form(RED)
VISUAL, TEXTUAL = "clip/demo-colours/visual", "clip/demo-colours/textual"


class Gate:
    """Holds photos in their workers, before the model sees them, until it is opened."""

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


async def test_restart_keeps_recently_used_models_and_loads_preloaded_ones_again(cache: Path) -> None:
    inside = Inside(cache, MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL="demo-colours")
    store = inside.engine.store
    async with asking(inside) as client:
        for route, sent in (("/clip/img", {"files": {"file": RED}}), ("/clip/txt", {"json": {"text": "red"}})):
            await client.post(route, **sent)
        assert (await client.post("/check")).json()["loaded"] == [TEXTUAL, VISUAL]
        assert (await client.post("/restart")).json() == {"result": "pass"}
        assert store.loaded == [TEXTUAL, VISUAL], "recently used models stay"
        await store.drop_idle(0, but_preloaded=False)
        assert (await client.post("/restart")).json() == {"result": "pass"}
        await eventually(lambda: store.loaded == [TEXTUAL])


async def test_check_reports_models_tasks_warnings_and_version(cache: Path) -> None:
    settings = {"CLIP_VISUAL_MODEL_NAME": "RN50__openai", "FACE_MIN_SCORE": 0.4, "TASKS": "ocr,clip"}
    async with asking(Inside(cache, ["there is no key"], **settings)) as client:
        told = (await client.post("/check")).json()
    assert (told["recognition_model"], told["facial_min_score"]) == ("demo-faces", 0.4)
    assert (told["clip_model"], told["clip_vector_length"]) == ("RN50__openai", 1024)
    assert (told["ocr_model"], told["tasks"], told["loaded"]) == ("PP-OCRv6_small", ["clip", "ocr"], [])
    assert (told["demo"], told["warnings"], told["version"]) == (True, ["there is no key"], version())


async def ready(client: httpx.AsyncClient) -> tuple[int, Any, str | None]:
    """The status of /ready, its message or the models that it names, and its Retry-After."""
    answer = await client.get("/ready")
    told = answer.json()
    return answer.status_code, told.get("msg", told.get("models")), answer.headers.get("retry-after")


async def test_ready_names_the_models_and_loads_none(cache: Path) -> None:
    inside = Inside(cache, TASKS="ocr,clip", INSTANCE_NAME="nas-1")
    async with asking(inside) as client:
        models = {"ocr": "PP-OCRv6_small", "clip_visual": "demo-colours", "clip_textual": "demo-colours"}
        assert (await client.get("/ready")).json() == {"result": "ready", "instance": "nas-1", "models": models}
        assert (await client.post("/check")).json()["instance"] == "nas-1"
    assert inside.engine.store.loaded == []


async def test_ready_is_503_while_the_queue_is_full_and_when_the_service_stops(cache: Path, gate: Gate) -> None:
    inside = Inside(cache, MACHINE_LEARNING_WORKERS=64)
    async with asking(inside) as client:
        photos = [asyncio.create_task(client.post("/clip/img", files={"file": RED})) for _ in range(2)]
        await eventually(lambda: inside.waiting["photos"] == 2)
        assert await ready(client) == (503, "the queue is full (2 photos)", "5")
        gate.open()
        await asyncio.gather(*photos)
        assert (await ready(client))[0] == 200
        inside.uploads.max_uploads = 0
        assert await ready(client) == (503, "there is no room for more uploads", "5")
        inside.lifecycle.is_stopping = True
        assert await ready(client) == (503, "the service is stopping", "5")


async def test_ready_is_503_while_a_model_of_an_enabled_task_is_unavailable(cache: Path, tmp_path: Path) -> None:
    broken = tmp_path / "cache"
    shutil.copytree(cache, broken)
    for model in (broken / "facial-recognition").glob("*/*/model.onnx"):
        model.write_bytes(b"damaged")
    for tasks, expected in (("ocr,clip,faces", 503), ("ocr,clip", 200)):
        async with asking(Inside(broken, TASKS=tasks)) as client:
            assert (await ready(client))[0] == 200, "no request has needed the model yet"
            await client.post("/represent", files={"file": RED})
            status, told, _ = await ready(client)
            assert status == expected
            assert expected == 200 or told == "faces: the model demo-faces is unavailable"


async def test_ready_is_503_while_a_model_is_downloaded(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "visual/preprocess_cfg.json": b"{}", "visual/model.onnx": bytes(1_000_000)}
    with HubServer() as hub:
        hub.repositories[f"immich-app/{DEFAULT_CLIP}"] = files
        hub.stalls, hub.after = 99, 1000
        inside = Inside(
            tmp_path,
            HF_ENDPOINT=hub.endpoint,
            CLIP_VISUAL_MODEL_NAME=DEFAULT_CLIP,
            CLIP_TEXTUAL_MODEL_NAME=DEFAULT_CLIP,
        )
        async with asking(inside) as client:
            assert (await ready(client))[0] == 200
            await client.post("/api/models/clip/visual/pull")
            async with asyncio.timeout(60):
                while (await ready(client))[:2] != (503, f"clip: the model {DEFAULT_CLIP} is unavailable"):
                    await asyncio.sleep(0.05)


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
    inside = Inside(cache, MACHINE_LEARNING_WORKERS=64)  # each has room for one waiting photo
    async with asking(inside) as client:
        photos = [asyncio.create_task(client.post("/clip/img", files={"file": RED})) for _ in range(2)]
        await eventually(lambda: gate.reached == 1 and inside.waiting == {"photos": 2, "texts": 0})
        assert (await client.post("/clip/txt", json={"text": "red"})).status_code == 200
        answer = await client.post("/ocr", content=unread(), headers={"content-type": FORM})
        assert (answer.status_code, answer.json()["msg"]) == (503, "the queue is full (2 requests)")
        gate.open()
        assert [answer.status_code for answer in await asyncio.gather(*photos)] == [200, 200]
    assert (inside.waiting, inside.uploads.held_bytes) == ({"photos": 0, "texts": 0}, 0)


async def test_the_photo_of_a_client_that_disconnects_is_skipped_and_its_place_is_free(cache: Path, gate: Gate) -> None:
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
        await eventually(lambda: inside.waiting["photos"] == 2)
        hang_up.set()
        await second
        await eventually(lambda: inside.waiting["photos"] == 1)
        assert (sent[0]["status"], inside.trace.reason) == (400, "ClientDisconnect")
        gate.open()
        assert (await first).status_code == 200
    assert (gate.reached, inside.uploads.held_bytes) == (1, 0)
