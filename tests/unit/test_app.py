# SPDX-License-Identifier: AGPL-3.0-only
"""The service as it is put together: what it loads, downloads, and lets go of."""

from pathlib import Path
from typing import Any

from demo.__main__ import environment as demo_environment
from hub_server import HubServer
from mt_photos_ml.settings import DEFAULT_CLIP
from service import anonymous_mb, loaded, post, running, until


def test_memory_comes_back_in_a_pause_and_with_an_idle_model_but_a_preloaded_one_stays(
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
        assert len(loaded(client)) == 3, "in a pause the models stay"
        paused = anonymous_mb(service.pid) - before
        until(lambda: loaded(client) == ["clip/demo-colours/textual"])
        until(lambda: anonymous_mb(service.pid) - before < min(0.4 * used, paused))


def test_a_download_is_shared_and_told_as_it_goes(tmp_path: Path) -> None:
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
            until(lambda: told()["state"] == "downloading" and told()["download"]["done"] > 1_000_000)
            assert [asked for asked, _ in hub.requests if "list " in asked or "visual/model.onnx" in asked] == [
                f"list immich-app/{DEFAULT_CLIP}",
                "file@visual/model.onnx",
            ]
            hub.left.set()
