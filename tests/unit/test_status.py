# SPDX-License-Identifier: AGPL-3.0-only
"""The status of the service and of its models, as the page shows it."""

from pathlib import Path
from typing import Any

import pytest

from demo.pictures import colour_photo
from inside import Inside, asking
from mt_photos_ml import version
from mt_photos_ml.engine.status import ModelStatus
from mt_photos_ml.models.catalog import ROLES, ModelRef
from mt_photos_ml.models.progress import Download, ModelState
from mt_photos_ml.runtime.prepared.runtime import FOLDER
from photos import jpeg

VISUAL = ModelRef("clip", "demo-mine", "visual")
ROLE = ROLES[2]


@pytest.mark.anyio
async def test_the_status_reports_models_errors_times_photos_and_memory(cache: Path) -> None:
    inside = Inside(cache, ["the key is bad"], TASKS="ocr,clip", CLIP_TEXTUAL_MODEL_NAME="RN50__openai")
    async with asking(inside) as client:
        await client.post("/clip/img", files={"file": jpeg(colour_photo("red", (64, 48)))})
        await client.post("/ocr", files={"file": b"no photo"})
        told = (await client.get("/api/status")).json()
    models = {(model["task"], model["type"]): model for model in told.pop("models")}
    assert {key: model["state"] for key, model in models.items()} == {
        ("ocr", "detection"): "ready",
        ("ocr", "recognition"): "ready",
        ("clip", "visual"): "ready",
        ("clip", "textual"): "missing",
    }
    visual = models["clip", "visual"]
    assert (visual["name"], visual["runs_on"], visual["error"]) == ("demo-colours", "CPU", None)
    assert (visual["idle_s"] < 60, visual["disk_mb"], visual["prepared"]) == (True, 0, False)
    (error,) = told.pop("errors")
    assert (error["path"], error["status"]) == ("/ocr", 200)
    assert told.pop("mean_ms").keys() == {"/clip/img"}
    assert sum(told.pop("photos")["per_minute"]) == 1
    assert min(told.pop("memory").values()) > 10
    assert 0 <= told.pop("uptime_s") < 60
    assert "onnxruntime" in told.pop("runtime")
    assert told.pop("card_mb") is None or Path("/dev/nvidiactl").exists()
    assert told == {
        "version": version(),
        "instance": inside.engine.settings.instance_name,
        "demo": True,
        "warnings": ["the key is bad"],
        "tasks": {"ocr": True, "clip": True, "faces": False},
        "clip_vector_length": 512,
        "refused": [],
        "waiting": {"photos": 0, "texts": 0, "uploads": 0},
    }


def status(cache: Path, state: ModelState, download: Download | None = None, ref: ModelRef = VISUAL) -> ModelStatus:
    return ModelStatus.of(ROLE, ref, cache, state, "CPU", download, None)


def test_a_model_is_missing_until_all_of_its_files_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "clip" / "demo-mine"
    steps: list[tuple[list[str], tuple[Any, ...]]] = [
        ([], ("missing", 0, False)),
        (["visual/model.onnx", "visual/preprocess_cfg.json"], ("missing", 3, False)),
        (["config.json", f"visual/{FOLDER}/a.onnx"], ("not loaded", 4, True)),
    ]
    for files, expected in steps:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(bytes(1_250_001))
        told = status(tmp_path, ModelState("not loaded"))
        assert (told.state, told.disk_mb, told.prepared) == expected
    in_wheel = ModelRef("ocr", "PP-OCRv6_small", "detection")
    assert status(tmp_path, ModelState("not loaded"), ref=in_wheel).state == "not loaded"


def test_a_models_status_has_its_idle_time_memory_error_and_download(
    tmp_path: Path,
) -> None:
    download = Download(VISUAL, 1, 4, 0.5, "https://hf-mirror.com")
    ready = status(tmp_path, ModelState("ready", 8.6, 20.7), download)
    assert (ready.state, ready.idle_s, ready.memory_mb, ready.download) == ("ready", 9, 21, None)
    failed = status(tmp_path, ModelState("failed", error="it is damaged"))
    assert (failed.state, failed.idle_s, failed.error) == ("failed", None, "it is damaged")
    told = {"ref": "clip/demo-mine/visual", "done": 1, "total": 4, "speed": 0.5, "source": "https://hf-mirror.com"}
    assert status(tmp_path, ModelState("downloading"), download).download == told
