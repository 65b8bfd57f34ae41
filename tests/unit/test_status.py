# SPDX-License-Identifier: AGPL-3.0-only
"""How the service says it is: of each part of it what that part knows, of each model what lies and what is loaded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mt_photos_ml import version
from mt_photos_ml.api.middleware.body_limit import Queue
from mt_photos_ml.api.record import RequestRecord
from mt_photos_ml.api.uploads import Bodies
from mt_photos_ml.dashboard import status as status_module
from mt_photos_ml.dashboard.metrics import Metrics
from mt_photos_ml.dashboard.status import Status
from mt_photos_ml.engine import Engine
from mt_photos_ml.models.catalog import ModelRef
from mt_photos_ml.models.progress import Download
from mt_photos_ml.models.state import ModelState
from mt_photos_ml.runtime.prepared.runtime import FOLDER
from mt_photos_ml.settings import Settings

pytestmark = pytest.mark.anyio

VISUAL = ModelRef("clip", "demo-mine", "visual")


class Runtime:
    refused = ("CUDA: no driver",)

    def describe(self) -> str:
        return "a runtime"

    def runs_on(self, model: Path) -> str:
        return f"what {model.parent.name} runs on"


class Store:
    loaded: Sequence[str] = ("clip/demo-mine/visual", "ocr/small/detection")

    def __init__(self) -> None:
        self.states: dict[ModelRef, ModelState] = {}

    def state(self, ref: ModelRef) -> ModelState:
        return self.states.get(ref, ModelState("not loaded"))


class Parts:
    """A service of parts whose state a test chooses."""

    def __init__(self, cache: Path, **settings: Any) -> None:
        named = {"CLIP_VISUAL_MODEL_NAME": "demo-mine", "CLIP_TEXTUAL_MODEL_NAME": "demo-mine", **settings}
        engine = Engine.of(Settings(MACHINE_LEARNING_CACHE_FOLDER=cache, PREPARE_MODELS=False, **named))
        self.store, self.metrics, self.downloads = Store(), Metrics(), engine.downloads
        self.engine = replace(engine, runtime=cast(Any, Runtime()), store=cast(Any, self.store))
        self.photos, self.texts = Queue(1, 1), Queue(1, 1)
        bodies = cast(Bodies, SimpleNamespace(present=4, held=70))
        self.status = Status(self.engine, self.metrics, ("the key is bad",), self.photos, self.texts, bodies)

    async def model(self, task: str = "clip", type: str = "visual") -> dict[str, Any]:
        models = (await self.status.tell())["models"]
        (model,) = (model for model in models if (model["task"], model["type"]) == (task, type))
        return dict(model)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "memory", SimpleNamespace(anonymous_mb=lambda: 12.6, mapped_mb=lambda: 34.56))


def put(folder: Path, *files: str) -> None:
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1_250_001))


async def test_each_part_tells_what_it_knows(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.photos.present, parts.texts.present, parts.metrics.started = 2, 3, 6000
    monkeypatch.setattr("mt_photos_ml.dashboard.status.time.time", lambda: 6090.6)
    parts.metrics.observe(RequestRecord("id", "POST", "/ocr", 200, total_ms=40))
    failed = RequestRecord("id", "POST", "/represent", 503)
    failed.fail(MemoryError("too little"))
    parts.metrics.observe(failed)
    told = await parts.status.tell()
    assert len(told.pop("models")) == 6
    assert told.pop("photos") == {"total": 1, "per_minute": [0] * 59 + [1]}
    assert told.pop("mean_ms").keys() == {"/ocr"}
    assert told == {
        "version": version(),
        "demo": True,
        "warnings": ["the key is bad"],
        "tasks": {"ocr": True, "clip": True, "faces": True},
        "clip_vector_length": None,
        "runtime": "a runtime",
        "refused": ["CUDA: no driver"],
        "uptime_s": 91,
        "memory": {"anonymous_mb": 13, "mapped_mb": 35},
        "waiting": {"photos": 2, "texts": 3, "uploads": 4},
        "errors": [{"at": 6090.6, "path": "/represent", "status": 503, "message": "too little"}],
    }


async def test_a_task_that_is_off_is_off_and_its_models_are_not_told(tmp_path: Path) -> None:
    told = await Parts(tmp_path, TASKS="clip", CLIP_VISUAL_MODEL_NAME="RN50__openai").status.tell()
    assert told["tasks"] == {"ocr": False, "clip": True, "faces": False}
    assert [(model["task"], model["type"], model["name"]) for model in told["models"]] == [
        ("clip", "visual", "RN50__openai"),
        ("clip", "textual", "demo-mine"),
    ]
    assert told["clip_vector_length"] == 1024
    assert told["demo"] is False


async def test_a_model_that_is_not_there_is_missing(parts: Parts) -> None:
    assert await parts.model() == {
        "task": "clip",
        "type": "visual",
        "name": "demo-mine",
        "state": "missing",
        "runs_on": "what visual runs on",
        "idle_s": None,
        "memory_mb": None,
        "error": None,
        "disk_mb": 0,
        "prepared": False,
        "variant": "",
        "download": None,
    }


async def test_a_model_that_lies_on_the_disk_is_not_missing_once_all_of_it_does(parts: Parts, tmp_path: Path) -> None:
    folder = tmp_path / "clip" / "demo-mine"
    put(folder, "visual/model.onnx", "visual/preprocess_cfg.json")
    told = await parts.model()
    assert (told["state"], told["disk_mb"], told["prepared"]) == ("missing", 3, False)
    put(folder, "config.json", f"visual/{FOLDER}/a.onnx")
    told = await parts.model()
    assert (told["state"], told["disk_mb"], told["prepared"]) == ("not loaded", 4, True)


async def test_a_model_in_the_wheel_is_not_missing(parts: Parts) -> None:
    told = await parts.model("ocr", "detection")
    assert (told["state"], told["disk_mb"]) == ("not loaded", 0)


async def test_a_model_in_memory_says_since_when_it_is_idle_and_how_large_it_is(parts: Parts) -> None:
    parts.store.states[VISUAL] = ModelState("ready", 8.6, 20.7)
    told = await parts.model()
    assert (told["state"], told["idle_s"], told["memory_mb"]) == ("ready", 9, 21)


async def test_a_model_that_failed_says_why(parts: Parts) -> None:
    parts.store.states[VISUAL] = ModelState("failed", error="it is damaged")
    told = await parts.model()
    assert (told["state"], told["error"]) == ("failed", "it is damaged")


async def test_a_download_is_told_for_as_long_as_it_goes_on(parts: Parts) -> None:
    parts.downloads[VISUAL] = Download(VISUAL, 1, 4, 0.5, "https://hf-mirror.com")
    assert (await parts.model())["download"] is None
    parts.store.states[VISUAL] = ModelState("downloading")
    told = (await parts.model())["download"]
    source = "https://hf-mirror.com"
    assert told == {"ref": "clip/demo-mine/visual", "done": 1, "total": 4, "speed": 0.5, "source": source}
    parts.downloads.clear()
    told = await parts.model()
    assert (told["state"], told["download"]) == ("downloading", None)


async def test_a_variant_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip/demo-mine/visual/int8").mkdir(parents=True)
    (tmp_path / "clip/demo-mine/visual/int8/model.onnx").touch()
    parts = Parts(tmp_path, INT8_TASKS="clip")
    assert ((await parts.model())["variant"], (await parts.model("clip", "textual"))["variant"]) == ("int8", "")


async def test_the_gauges_are_those_of_the_moment(parts: Parts) -> None:
    parts.photos.present, parts.texts.present = 2, 3
    assert list(parts.status.gauges()) == [
        (
            "waiting",
            "Requests that wait, by what for.",
            [("", {"queue": "photos"}, 2), ("", {"queue": "texts"}, 3), ("", {"queue": "uploads"}, 4)],
        ),
        ("upload_bytes", "Bytes of uploads that are held.", [("", {}, 70)]),
        (
            "model_loaded",
            "Models in memory.",
            [("", {"model": "clip/demo-mine/visual"}, 1), ("", {"model": "ocr/small/detection"}, 1)],
        ),
        (
            "memory_bytes",
            "Resident memory of the process.",
            [("", {"kind": "anonymous"}, 12_600_000), ("", {"kind": "mapped"}, 34_560_000)],
        ),
        (
            "start_time_seconds",
            "When the process began, in seconds since 1970.",
            [("", {}, parts.metrics.started)],
        ),
        ("info", "The version.", [("", {"version": version()}, 1)]),
    ]
