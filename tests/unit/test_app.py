# SPDX-License-Identifier: AGPL-3.0-only
"""The service as it is put together: what it says at the start, loads, and lets go of."""

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
    assert "this is the demo" in log
    assert KEY not in log
    with service.client() as client:
        assert client.post("/check").json()["demo"] is True
        assert 'data-demo="true"' in client.get("/").text


def test_memory_comes_back_when_models_are_dropped(service: Service, photo: bytes) -> None:
    before = anonymous_mb(service.pid)
    post(service, "/ocr", photo)
    loaded = anonymous_mb(service.pid)
    with service.client() as client:
        client.post("/restart")
    after = anonymous_mb(service.pid)
    assert loaded - before > 100
    assert after - before < 0.4 * (loaded - before)


def test_a_preloaded_model_is_there_before_the_first_request(cache: Path, tmp_path: Path) -> None:
    settings = {**demo_environment(cache), "MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": "demo-colours"}
    with running(tmp_path, settings) as service, service.client() as client:
        until(lambda: loaded(client) == ["clip/demo-colours/textual"])


def test_an_idle_model_is_dropped_after_its_time(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path, {**demo_environment(cache), "MACHINE_LEARNING_MODEL_TTL": "1"}) as service:
        assert post(service, "/clip/img", jpeg(colour_photo("red", (640, 480)))).status_code == 200
        with service.client() as client:
            until(lambda: not loaded(client))
        assert "dropped clip/demo-colours/visual" in service.log.read_text()


def test_a_download_is_shared_and_told_as_it_goes(tmp_path: Path) -> None:
    photo = jpeg(colour_photo("red", (320, 240)))
    with HubServer() as hub:
        hub.repositories[f"immich-app/{DEFAULT_CLIP}"] = {
            "config.json": b"{}",
            "visual/preprocess_cfg.json": b"{}",
            "visual/model.onnx": bytes(4_000_000),
        }
        hub.stalls, hub.after = 99, 1_000_000
        settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"), "HF_ENDPOINT": hub.endpoint}
        with running(tmp_path, settings) as service, service.client() as client:

            def visual() -> dict[str, object]:
                told = client.get("/api/status").json()["models"]
                (model,) = [m for m in told if (m["task"], m["type"]) == ("clip", "visual")]
                return dict(model)

            assert visual()["state"] == "missing"
            for _ in range(3):
                client.post("/api/models/clip/visual/pull")
            until(lambda: visual()["state"] == "downloading" and hub.sent.count("visual/model.onnx") == 1)
            answer = client.post("/clip/img", files={"file": photo})
            assert answer.status_code == 503
            assert "clip" in answer.json()["msg"]
            assert "still being downloaded" in answer.json()["msg"]
            assert hub.sent.count("visual/model.onnx") >= 1
            assert len([asked for asked, _ in hub.requests if asked.startswith("list ")]) == 1
            hub.left.set()


def test_the_machine_is_measured(service: Service) -> None:
    with service.client() as client:
        told = client.post("/api/bench").json()["result"]
    assert {task["task"] for task in told["tasks"]} == {"ocr", "clip", "faces"}
    assert all(task["milliseconds"] > 0 and task["per_day"] > 0 for task in told["tasks"])
    assert {hint["code"] for hint in told["hints"]} == {"int8"}
