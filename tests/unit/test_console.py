# SPDX-License-Identifier: AGPL-3.0-only
"""The API behind the page, over HTTP: status, models, what is not used, the measurement, the documents."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo
from hub_server import HubServer
from photos import jpeg
from service import Service, loaded, post, running, until

NAME = "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k"


def test_the_status_tells_models_photos_times_and_errors(service: Service, photo: bytes) -> None:
    post(service, "/ocr", photo)
    post(service, "/clip/img", b"no photo")
    with service.client() as client:
        told = client.get("/api/status").json()
    states = {(model["task"], model["type"]): model for model in told["models"]}
    assert len(states) == 6
    reader = states["ocr", "recognition"]
    assert (reader["state"], reader["name"], reader["runs_on"]) == ("ready", "PP-OCRv6_small", "CPU")
    assert reader["memory_mb"] > 1
    assert states["clip", "textual"]["state"] == "not loaded"
    assert told["photos"]["total"] == sum(told["photos"]["per_minute"]) == 1
    assert told["mean_ms"]["/ocr"]["count"] == 1
    assert told["errors"][0]["message"] == "the file is not a photo, or its beginning is damaged"
    assert told["waiting"] == {"photos": 0, "texts": 0, "uploads": 0}
    assert told["memory"]["anonymous_mb"] > 10
    assert told["tasks"] == {"ocr": True, "clip": True, "faces": True}
    assert "onnxruntime" in told["runtime"]


def test_a_task_that_is_off_has_no_models(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path, {**demo_environment(cache), "TASKS": "ocr"}) as service, service.client() as client:
        told = client.get("/api/status").json()
        assert {model["task"] for model in told["models"]} == {"ocr"}
        assert told["tasks"] == {"ocr": True, "clip": False, "faces": False}
        assert client.post("/api/models/clip/visual/load").status_code == 404


def test_a_model_can_be_loaded_and_unloaded(service: Service) -> None:
    with service.client() as client:
        assert client.post("/api/models/clip/visual/load").json() == {"result": "pass"}
        until(lambda: loaded(client) == ["clip/demo-colours/visual"])
        assert client.post("/api/models/clip/visual/unload").json() == {"result": "pass"}
        assert loaded(client) == []


@pytest.mark.parametrize("path", ["clip/visual/explode", "clip/detection/load", "cats/visual/load"])
def test_a_model_or_an_action_that_there_is_not_is_404(service: Service, path: str) -> None:
    with service.client() as client:
        answer = client.post(f"/api/models/{path}")
        assert answer.status_code == 404
        assert answer.json()["result"] == []
        assert answer.json()["msg"]


def test_a_download_is_shared_and_told_as_it_goes(tmp_path: Path) -> None:
    photo = jpeg(colour_photo("red", (320, 240)))
    with HubServer() as hub:
        hub.repositories[f"immich-app/{NAME}"] = {
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


def test_what_is_not_used_is_told_and_deleted(tmp_path: Path, cache: Path) -> None:
    old = tmp_path / "cache" / "clip" / "ViT-B-32__openai" / "visual"
    old.mkdir(parents=True)
    (old / "model.onnx").write_bytes(bytes(3_000_000))
    settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"), "TASKS": "ocr"}
    with running(tmp_path, settings) as service, service.client() as client:
        assert client.get("/api/models/unused").json() == {"result": {"clip/ViT-B-32__openai": 3}}
        assert old.is_dir()
        client.delete("/api/models/unused")
        assert not old.exists()
        assert client.get("/api/models/unused").json() == {"result": {}}


def test_the_machine_is_measured_and_two_at_a_time_are_not(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with service.client() as client:
        told = client.post("/api/bench").json()["result"]
    assert {task["task"] for task in told["tasks"]} == {"ocr", "clip", "faces"}
    assert all(task["milliseconds"] > 0 and task["per_day"] > 0 for task in told["tasks"])
    assert {hint["code"] for hint in told["hints"]} == {"int8"}


def test_the_documents_are_closed_and_stand_on_their_own(service: Service) -> None:
    with service.client(key=None) as client:
        assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 401
    with service.client() as client:
        document, page = client.get("/openapi.json").json(), client.get("/docs").text
    for path in document["paths"]:
        assert f" {path}</code>" in page
    served = {path for path in document["paths"] if not path.startswith(("/restart", "/api/bench"))}
    with service.client() as client:
        for path in served:
            for method in document["paths"][path]:
                asked = path.format(task="clip", type="visual", action="unload")
                assert client.request(method, asked).status_code in (200, 422), path
    assert not re.search(r"(src|href)\s*=|@import|url\(", page)


def test_the_page_runs_under_a_policy_that_allows_its_own_script_and_style_alone(service: Service) -> None:
    with service.client(key=None) as client:
        answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r'\bsrc="|<link(?! rel="icon" href="data:,")|@import|\son\w+="', answer.text)
    assert "mt_photos_ai_extra" in answer.text
    assert service.url in answer.text


def test_a_host_that_somebody_made_up_can_not_write_into_the_page(service: Service) -> None:
    with service.client(key=None) as client:
        answer = client.get("/", headers={"host": 'x"><script>alert(1)</script>'})
    assert "<script>alert" not in answer.text
