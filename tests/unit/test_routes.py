# SPDX-License-Identifier: AGPL-3.0-only
"""The routes: what each task is given and answers, what is off, full, missing, remembered or dropped."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo
from inside import Inside, asking, eventually
from mt_photos_ml import version
from mt_photos_ml.api import routes as routes_module
from mt_photos_ml.api.record import RequestRecord
from mt_photos_ml.models.loader import ModelKey
from mt_photos_ml.photo import Photo
from mt_photos_ml.tasks import clip, faces, ocr
from photos import jpeg
from service import post, running

FORM = {"content-type": "multipart/form-data; boundary=b"}
RED = {"text": "red"}


@pytest.fixture(scope="module")
def small() -> bytes:
    return jpeg(colour_photo("red", (64, 48)))


class Store:
    """Of models that are their names."""

    loaded = ("clip/mine/visual",)

    def __init__(self) -> None:
        self.generations: dict[str, int] = {}
        self.in_use: list[str] = []
        self.calls: list[str] = []

    @contextlib.asynccontextmanager
    async def use(self, key: ModelKey[Any]) -> AsyncIterator[str]:
        name = str(key.ref)
        self.in_use.append(name)
        yield name
        self.in_use.remove(name)

    def generation(self, key: ModelKey[Any]) -> int:
        return self.generations.get(str(key.ref), 0)

    async def drop_unused(self) -> list[str]:
        self.calls.append("drop_unused")
        return []

    async def preload(self) -> None:
        self.calls.append("preload")


class Tasks:
    """In the place of the real ones: they note what they are given, and do what a test says meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[tuple[Any, ...]] = []
        self.photos: list[Photo] = []
        self.meanwhile: Callable[[], object] = lambda: None
        monkeypatch.setattr(ocr, "read", self._answer([ocr.Line("A", 0.9, np.zeros((4, 2), np.float32))]))
        monkeypatch.setattr(faces, "find", self._answer([]))
        for name in ("encode_photo", "encode_text"):
            monkeypatch.setattr(clip, name, self._answer(np.array([1.0, 0.5], np.float32)))

    def _answer(self, answer: object) -> Callable[..., object]:
        def task(*given: object) -> object:
            self.photos += [one for one in given if isinstance(one, Photo)]
            self.given.append(tuple(str(one) if isinstance(one, Photo) else one for one in given))
            self.meanwhile()
            return answer

        return task


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    return Tasks(monkeypatch)


def fake(tmp_path: Path, warnings: Sequence[str] = (), **settings: Any) -> tuple[Inside, Store]:
    """A service whose models are in such a store."""
    inside, store = Inside(tmp_path, warnings, **settings), Store()
    inside.routes._store = store  # type: ignore[assignment]
    return inside, store


def test_a_full_queue_is_503_at_once_and_every_answer_is_one_or_the_other(cache: Path, tmp_path: Path) -> None:
    small = jpeg(colour_photo("blue", (640, 480)))
    settings = {**demo_environment(cache), "MACHINE_LEARNING_REQUEST_THREADS": "1"}
    with running(tmp_path, settings) as service, service.client() as client, ThreadPoolExecutor(130) as threads:
        answers = [threads.submit(client.post, "/represent", files={"file": small}) for _ in range(130)]
        done = [answer.result() for answer in answers]
    assert {answer.status_code for answer in done} == {200, 503}
    busy = next(answer for answer in done if answer.status_code == 503)
    assert "waiting" in busy.json()["msg"]
    assert busy.headers["retry-after"] == "5"


def test_a_model_that_cannot_be_had_is_503_and_a_photo_to_be_sent_again(tmp_path: Path, photo: bytes) -> None:
    settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    with running(tmp_path, settings) as service:
        for route in ("/clip/img", "/represent"):
            answer = post(service, route, photo)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["result"] == []
            assert "http://127.0.0.1:9" in answer.json()["msg"]
            assert "HF_ENDPOINT" in answer.json()["msg"]
        assert post(service, "/ocr", photo).json()["result"]["texts"] == ["First line of many", "Second line"]


@pytest.mark.anyio
async def test_restart_drops_what_is_loaded(cache: Path, small: bytes) -> None:
    inside = Inside(cache)
    async with asking(inside) as client:
        await client.post("/clip/img", files={"file": small})
        await client.post("/clip/txt", json=RED)
        assert (await client.post("/check")).json()["loaded"] == [
            "clip/demo-colours/textual",
            "clip/demo-colours/visual",
        ]
        assert (await client.post("/restart")).json() == {"result": "pass"}
        assert (await client.post("/check")).json()["loaded"] == []


@pytest.mark.anyio
async def test_what_is_to_be_kept_is_loaded_again_after_a_restart(tmp_path: Path, tasks: Tasks) -> None:
    inside, store = fake(tmp_path)
    async with asking(inside) as client:
        await client.post("/clip/txt", json=RED)
        await client.post("/restart")
        assert store.calls == ["drop_unused", "preload"]
        await client.post("/clip/txt", json=RED)
    assert len(tasks.given) == 2, "what was remembered is not any more"


@pytest.mark.anyio
async def test_the_process_starts_afresh_once_that_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside, _ = fake(tmp_path)
    async with asking(inside) as client:
        with caplog.at_level("INFO", "mt_photos_ml"):
            answer = await client.post("/restart_v2")
    assert answer.json() == {"result": "pass"}
    assert answer.headers["connection"] == "close", "the next request is for the next process"
    assert inside.restarts == 1
    assert "starting afresh, as asked for" in caplog.messages


@pytest.mark.anyio
async def test_a_task_that_is_switched_off_is_404(tmp_path: Path, small: bytes, tasks: Tasks) -> None:
    calls: dict[str, dict[str, Any]] = {
        "/ocr": {"files": {"file": small}},
        "/clip/img": {"files": {"file": small}},
        "/clip/txt": {"json": RED},
        "/represent": {"files": {"file": small}},
    }
    switches = {"/ocr": "ocr", "/clip/img": "clip", "/clip/txt": "clip", "/represent": "faces"}
    for task in ("ocr", "clip", "faces"):
        inside, _ = fake(tmp_path, TASKS=task)
        async with asking(inside) as client:
            for route, sent in calls.items():
                answer = await client.post(route, **sent)
                if switches[route] == task:
                    assert answer.status_code == 200
                else:
                    assert answer.status_code == 404
                    msg = f"the task {switches[route]} is switched off (TASKS)"
                    assert answer.json() == {"result": [], "msg": msg}


@pytest.mark.anyio
async def test_each_task_is_given_its_models_and_what_the_settings_say(
    tmp_path: Path, small: bytes, tasks: Tasks
) -> None:
    settings: dict[str, Any] = {
        "OCR_MODEL_NAME": "reader",
        "OCR_MIN_SCORE": 0.3,
        "CLIP_VISUAL_MODEL_NAME": "eye",
        "CLIP_TEXTUAL_MODEL_NAME": "ear",
        "CLIP_LANGUAGE": "de",
        "FACE_DETECTION_MODEL_NAME": "finder",
        "FACE_RECOGNITION_MODEL_NAME": "knower",
        "FACE_MIN_SCORE": 0.4,
    }
    inside, store = fake(tmp_path, **settings)
    in_use: list[list[str]] = []
    tasks.meanwhile = lambda: in_use.append(list(store.in_use))
    async with asking(inside) as client:
        read = await client.post("/ocr", files={"file": small})
        seen = await client.post("/clip/img", files={"file": small})
        heard = await client.post("/clip/txt", json=RED)
        found = await client.post("/represent", files={"file": small})
    assert tasks.given == [
        ("JPEG 64x48", "ocr/reader/detection", "ocr/reader/recognition", 0.3),
        ("JPEG 64x48", "clip/eye/visual"),
        ("red", "clip/ear/textual", "de"),
        ("JPEG 64x48", "facial-recognition/finder/detection", "facial-recognition/knower/recognition", 0.4),
    ]
    assert in_use == [[name for name in given if str(name).count("/") == 2] for given in tasks.given]
    assert store.in_use == []
    assert read.json()["result"]["texts"] == ["A"]
    assert seen.json() == heard.json() == {"result": ["1.0000000000000000", "0.5000000000000000"]}
    assert found.json() == {"detector_backend": "insightface", "recognition_model": "knower", "result": []}


@pytest.mark.anyio
async def test_a_search_for_a_colour_finds_it(cache: Path, small: bytes) -> None:
    async with asking(Inside(cache)) as client:
        seen = (await client.post("/clip/img", files={"file": small})).json()["result"]
        likeness = {}
        for word in ("red", "blue"):
            heard = (await client.post("/clip/txt", json={"text": word})).json()["result"]
            likeness[word] = sum(float(a) * float(b) for a, b in zip(seen, heard, strict=True))
    assert likeness["red"] > likeness["blue"]


@pytest.mark.anyio
async def test_the_check_tells_mt_photos_what_it_asks_for_and_a_person_the_rest(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "OCR_MODEL_NAME": "reader",
        "CLIP_VISUAL_MODEL_NAME": "RN50__openai",
        "FACE_DETECTION_MODEL_NAME": "finder",
        "FACE_RECOGNITION_MODEL_NAME": "knower",
        "FACE_MIN_SCORE": 0.4,
        "TASKS": "ocr,clip",
    }
    inside, _ = fake(tmp_path, ("there is no key",), **settings)
    async with asking(inside) as client:
        assert (await client.post("/check")).json() == {
            "result": "pass",
            "title": "mt-photos-ai服务",
            "help": "https://mtmt.tech/docs/advanced/ocr_api",
            "detector_backend": "insightface",
            "recognition_model": "knower",
            "facial_min_score": 0.4,
            "facial_max_distance": 0.5,
            "env_use_dml": False,
            "clip_vector_length": 1024,
            "clip_model": "RN50__openai",
            "ocr_model": "reader",
            "tasks": ["clip", "ocr"],
            "loaded": ["clip/mine/visual"],
            "demo": False,
            "warnings": ["there is no key"],
            "version": version(),
        }


@pytest.mark.anyio
async def test_the_ping_is_got_and_the_rest_is_posted(tmp_path: Path) -> None:
    inside, _ = fake(tmp_path)
    async with asking(inside) as client:
        assert (await client.get("/ping")).text == "pong"
        assert (await client.post("/ping")).status_code == 405
        for path in ("/check", "/ocr", "/clip/img", "/clip/txt", "/represent", "/restart", "/restart_v2"):
            assert (await client.get(path)).status_code == 405


@pytest.mark.anyio
async def test_the_record_has_the_photo_and_where_the_time_went(
    tmp_path: Path, small: bytes, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RequestRecord, "elapsed_ms", lambda record: 7.0)
    inside, _ = fake(tmp_path)
    usage = inside.engine.scheduler._usage

    def infer() -> None:
        usage.model_ms += 3.0
        for photo in tasks.photos:
            photo.decode_ms = 5.0

    tasks.meanwhile = infer
    async with asking(inside) as client:
        await client.post("/ocr", files={"file": small})
        record = inside.record
        assert (record.photo, record.megabytes) == ("JPEG 64x48", len(small) / 1e6)
        assert (record.waited_ms, record.decode_ms, record.model_ms) == (7.0, 5.0, 3.0)
        await client.post("/clip/txt", json=RED)
        record = inside.record
        assert (record.photo, record.waited_ms, record.decode_ms, record.model_ms) == (None, 7.0, None, 3.0)

        def fail() -> None:
            infer()
            raise MemoryError

        tasks.meanwhile = fail
        assert (await client.post("/represent", files={"file": small})).status_code == 503
        assert (inside.record.photo, inside.record.decode_ms, inside.record.model_ms) == ("JPEG 64x48", 5.0, 3.0)
        await client.post("/represent", files={"file": b"no photo"})
        record = inside.record
        assert (record.photo, record.megabytes, record.reason) == (None, 8e-6, "PhotoError")


@pytest.mark.anyio
async def test_what_is_no_form_is_told_and_goes_to_no_worker(tmp_path: Path, tasks: Tasks) -> None:
    inside, _ = fake(tmp_path)
    async with asking(inside) as client:
        for headers in ({}, {"content-type": "image/jpeg"}):
            answer = await client.post("/ocr", content=b"a photo", headers=headers)
            assert answer.status_code == 422
            assert "'file'" in answer.json()["msg"]
    assert tasks.given == []


async def searches(inside: Inside, *texts: str) -> list[str | None]:
    """What the record notes of each."""
    notes: list[str | None] = []
    async with inside.client() as client:
        for text in texts:
            assert (await client.post("/clip/txt", json={"text": text})).json()["result"][0] == "1.0000000000000000"
            notes.append(inside.record.note)
    return notes


@pytest.fixture
def searched(tmp_path: Path, tasks: Tasks) -> Iterator[tuple[Inside, Store]]:
    inside, store = fake(tmp_path)
    yield inside, store
    inside.close()


@pytest.mark.anyio
async def test_a_search_is_remembered_for_as_long_as_the_model_is_the_same(
    searched: tuple[Inside, Store], tasks: Tasks
) -> None:
    inside, store = searched
    assert await searches(inside, "red", "red", "blue", "red") == [None, "remembered", None, "remembered"]
    assert len(tasks.given) == 2
    store.generations["clip/demo-colours/textual"] = 1
    assert await searches(inside, "red", "red") == [None, "remembered"]


@pytest.mark.anyio
async def test_what_a_model_said_that_was_replaced_meanwhile_counts_as_the_new_one_s(
    searched: tuple[Inside, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, store = searched
    use = store.use

    @contextlib.asynccontextmanager
    async def replaced(key: ModelKey[Any]) -> AsyncIterator[str]:
        store.generations[str(key.ref)] = 1  # it waited for the new one
        async with use(key) as name:
            yield name

    monkeypatch.setattr(store, "use", replaced)
    assert await searches(inside, "red", "red") == [None, "remembered"]


@pytest.mark.anyio
async def test_a_long_text_is_not_remembered(searched: tuple[Inside, Store]) -> None:
    inside, _ = searched
    assert await searches(inside, "a" * 200, "a" * 200) == [None, "remembered"]
    assert await searches(inside, "a" * 201, "a" * 201) == [None, None]


@pytest.mark.anyio
async def test_what_was_not_asked_for_the_longest_is_forgotten(
    searched: tuple[Inside, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert routes_module._REMEMBERED == 1000
    monkeypatch.setattr(routes_module, "_REMEMBERED", 2)
    inside, _ = searched
    assert await searches(inside, "a", "b", "a", "b") == [None, None, "remembered", "remembered"]
    assert await searches(inside, "a", "c", "a", "b") == ["remembered", None, "remembered", None]


class Gate:
    """Tasks wait at it until it is opened."""

    def __init__(self, tasks: Tasks) -> None:
        self._open = threading.Event()
        tasks.meanwhile = lambda: self._open.wait(60)

    def open(self) -> None:
        self._open.set()


@pytest.mark.anyio
async def test_so_many_photos_are_worked_on_at_once_and_a_search_waits_for_none_of_them(
    tmp_path: Path, small: bytes, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_module, "MAX_WAITING", 1)
    at_once = 33  # more than Python would take by itself
    inside, _ = fake(tmp_path, MACHINE_LEARNING_REQUEST_THREADS=at_once)
    gate = Gate(tasks)
    async with asking(inside) as client:
        photos = [asyncio.create_task(client.post("/ocr", files={"file": small})) for _ in range(34)]
        await eventually(lambda: len(tasks.given) == at_once and inside.routes.photos.present == 34)
        answer = await client.post("/represent", content=b"not read", headers=FORM)
        assert (answer.status_code, answer.json()["msg"]) == (503, "34 requests are waiting already")
        texts = [asyncio.create_task(client.post("/clip/txt", json={"text": text})) for text in "ab"]
        await eventually(lambda: len(tasks.given) == at_once + 1 and inside.routes.texts.present == 2)
        answer = await client.post("/clip/txt", content=b"not read")
        assert (answer.status_code, answer.json()["msg"]) == (503, "2 requests are waiting already")
        gate.open()
        assert {answer.status_code for answer in await asyncio.gather(*photos, *texts)} == {200}
    assert len(tasks.given) == 36
    assert inside.routes.photos.present == inside.routes.texts.present == inside.routes.bodies.held == 0


@pytest.mark.anyio
async def test_who_has_hung_up_meanwhile_is_not_worked_for(tmp_path: Path, small: bytes, tasks: Tasks) -> None:
    inside, _ = fake(tmp_path)
    form = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + small + b"\r\n--b--\r\n"
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": form, "more_body": False},
        {"type": "http.disconnect"},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if len(messages) > 1 else messages[0]

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.encode(), value.encode()) for name, value in FORM.items()]
    scope = {"type": "http", "method": "POST", "path": "/ocr", "headers": headers, "query_string": b""}
    await inside.app(scope, receive, send)
    inside.close()
    assert tasks.given == []
    assert sent[0]["status"] == 400
    assert (inside.record.status, inside.record.reason) == (400, "ClientDisconnect")


@pytest.mark.anyio
async def test_uploads_may_hold_twice_the_largest_one(tmp_path: Path) -> None:
    inside, _ = fake(tmp_path, MAX_UPLOAD_MB=3)
    assert inside.routes.bodies._limit == 6_000_000
    inside.close()


@pytest.mark.anyio
async def test_the_workers_end_when_the_service_does(tmp_path: Path, small: bytes, tasks: Tasks) -> None:
    inside, _ = fake(tmp_path)
    before = set(threading.enumerate())
    workers: list[threading.Thread] = []
    tasks.meanwhile = lambda: workers.append(threading.current_thread())
    async with asking(inside) as client:
        await client.post("/ocr", files={"file": small})
        await client.post("/clip/txt", json=RED)
        assert all(worker.is_alive() for worker in workers)
    assert len({*workers} - before) == 2
    assert not any(worker.is_alive() for worker in workers)
    assert [worker.name.rpartition("_")[0] for worker in workers] == ["photo", "text"], "for who looks at the process"
