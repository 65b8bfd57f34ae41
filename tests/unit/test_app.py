# SPDX-License-Identifier: AGPL-3.0-only
"""The service as it is put together: what it says at the start, loads, downloads, and lets go of."""

from pathlib import Path

from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo
from hub_server import HubServer
from mt_photos_ml.settings import DEFAULT_CLIP
from photos import jpeg
from service import KEY, Service, anonymous_mb, loaded, post, running, until


def test_the_start_says_models_vector_length_and_that_it_is_the_demo(service: Service) -> None:
    log = service.log.read_text()
    assert "clip: demo-colours, vectors of 512 numbers" in log
    assert ("this is the demo" in log, KEY in log) == (True, False)


def test_memory_comes_back_when_models_are_dropped(service: Service, photo: bytes) -> None:
    before = anonymous_mb(service.pid)
    post(service, "/ocr", photo)
    most = anonymous_mb(service.pid)
    with service.client() as client:
        client.post("/restart")
    after = anonymous_mb(service.pid)
    assert most - before > 100
    assert after - before < 0.4 * (most - before)


def test_a_model_is_preloaded_and_an_idle_one_dropped(cache: Path, tmp_path: Path) -> None:
    settings = {**demo_environment(cache), "MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": "demo-colours"}
    with running(tmp_path, {**settings, "MACHINE_LEARNING_MODEL_TTL": "1"}) as service, service.client() as client:
        until(lambda: loaded(client) == ["clip/demo-colours/textual"])
        assert post(service, "/clip/img", jpeg(colour_photo("red", (640, 480)))).status_code == 200
        until(lambda: "dropped clip/demo-colours/visual" in service.log.read_text())
        assert loaded(client) == ["clip/demo-colours/textual"]


def test_a_download_is_shared_and_told_as_it_goes(tmp_path: Path) -> None:
    with HubServer() as hub:
        files = {"config.json": b"{}", "visual/preprocess_cfg.json": b"{}", "visual/model.onnx": bytes(4_000_000)}
        hub.repositories[f"immich-app/{DEFAULT_CLIP}"] = files
        hub.stalls, hub.after = 99, 1_000_000
        settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"), "HF_ENDPOINT": hub.endpoint}
        with running(tmp_path, settings) as service, service.client() as client:

            def state() -> str:
                told = client.get("/api/status").json()["models"]
                return next(str(m["state"]) for m in told if (m["task"], m["type"]) == ("clip", "visual"))

            assert state() == "missing"
            for _ in range(3):
                client.post("/api/models/clip/visual/pull")
            until(lambda: state() == "downloading" and hub.sent.count("visual/model.onnx") == 1)
            answer = post(service, "/clip/img", jpeg(colour_photo("red", (320, 240))))
            assert (answer.status_code, "still being downloaded" in answer.json()["msg"]) == (503, True)
            assert len([asked for asked, _ in hub.requests if asked.startswith("list ")]) == 1
            hub.left.set()
