# SPDX-License-Identifier: AGPL-3.0-only
"""The whole service: what it logs at the start, downloads, loads and unloads."""

from pathlib import Path
from typing import Any

import pytest

from demo.__main__ import environment as demo_environment
from hub_server import HubServer
from mt_photos_ml.server.announce import misspelt
from mt_photos_ml.settings import DEFAULT_CLIP
from service import KEY, anonymous_mb, loaded, post, running, until


def test_memory_is_freed_in_a_pause_and_with_idle_models_but_a_preloaded_model_stays(
    cache: Path, tmp_path: Path, photo: bytes
) -> None:
    settings = {"MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": "demo-colours", "MACHINE_LEARNING_MODEL_TTL": "4"}
    given = {**demo_environment(cache), "PREPARE_MODELS": "false", **settings}
    with running(tmp_path, given) as service, service.client() as client:
        until(lambda: loaded(client) == ["clip/demo-colours/textual"])
        before = anonymous_mb(service.pid)
        post(service, "/ocr", photo)
        used = anonymous_mb(service.pid) - before
        until(lambda: anonymous_mb(service.pid) - before < 0.6 * used)
        assert len(loaded(client)) == 3, "a pause unloads no model"
        paused = anonymous_mb(service.pid) - before
        until(lambda: loaded(client) == ["clip/demo-colours/textual"])
        until(lambda: anonymous_mb(service.pid) - before < min(0.4 * used, paused))


def test_a_download_is_shared_and_its_progress_is_in_the_status(tmp_path: Path) -> None:
    with HubServer() as hub:
        files = {"config.json": b"{}", "visual/preprocess_cfg.json": b"{}", "visual/model.onnx": bytes(4_000_000)}
        hub.repositories[f"immich-app/{DEFAULT_CLIP}"] = files
        hub.stalls, hub.after = 99, 1_000_000
        settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"), "HF_ENDPOINT": hub.endpoint}
        with running(tmp_path, {**settings, "TASKS": "clip"}) as service, service.client() as client:

            def told() -> dict[str, Any]:
                models = client.get("/api/status").json()["models"]
                return next(model for model in models if model["type"] == "visual")

            assert told()["state"] == "missing"
            for _ in range(3):
                client.post("/api/models/clip/visual/pull")
            until(lambda: (told()["download"] or {}).get("total") == 4_000_004)
            assert len([asked for asked, _ in hub.requests if asked.startswith("list ")]) == 1
            hub.left.set()


def test_the_start_logs_the_settings_likely_mistakes_and_what_to_do_next(cache: Path, tmp_path: Path) -> None:
    others = {"HF_ENDPOINT": "http://me:secret@127.0.0.1:9", "FACE_MIN_SCORE": "0.7", "LOG_LEVEL": "debug"}
    with running(tmp_path, {**demo_environment(cache), **others}) as service:
        log = service.log.read_text()
    assert "clip: demo-colours, vectors of 512 numbers" in log
    assert "this is the demo" in log
    assert "FACE_MIN_SCORE=0.7" in log
    assert "HF_ENDPOINT=http://127.0.0.1:9" in log
    assert "WARNING LOG_LEVEL is not a setting and is ignored; did you mean IMMICH_LOG_LEVEL?" in log
    assert f"models are kept in {cache}" in log
    assert f"next: open {service.url} in a browser" in log
    assert KEY not in log
    assert "secret" not in log


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("API_KEY", "API_AUTH_KEY"),
        ("OCR_MODEL", "OCR_MODEL_NAME"),
        ("MACHINE_LEARNING_MODEL_INTER_OP_THREADS", "MACHINE_LEARNING_MODEL_INTRA_OP_THREADS"),
        ("API_AUTH_KEY_FILES", "API_AUTH_KEY_FILE"),
    ],
)
def test_a_misspelt_setting_gets_a_suggestion(name: str, meant: str) -> None:
    assert list(misspelt([name])) == [(name, meant)]


def test_settings_and_variables_of_other_programs_get_no_suggestion() -> None:
    others = ["HTTP_PORT", "http_port", "https_proxy", "HF_HOME", "HF_HUB_OFFLINE", "LD_LIBRARY_PATH", "HOST", "PORT"]
    of_the_base = ["IMMICH_BUILD", "IMMICH_SOURCE_REF", "MACHINE_LEARNING_MODEL_ARENA", "MACHINE_LEARNING_RKNN_THREADS"]
    assert list(misspelt([*others, *of_the_base])) == []
