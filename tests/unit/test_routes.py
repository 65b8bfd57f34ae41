# SPDX-License-Identifier: AGPL-3.0-only
"""The routes of a running service: what is off, full, missing or dropped."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo
from photos import jpeg
from service import Service, loaded, post, running


def test_restart_drops_what_is_loaded(service: Service, photo: bytes) -> None:
    post(service, "/ocr", photo)
    with service.client() as client:
        assert len(loaded(client)) == 2
        assert client.post("/restart").json() == {"result": "pass"}
        assert loaded(client) == []


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


def test_a_task_that_is_switched_off_is_404(cache: Path, tmp_path: Path, photo: bytes) -> None:
    with running(tmp_path, {**demo_environment(cache), "TASKS": "clip"}) as service:
        answer = post(service, "/ocr", photo)
        assert answer.status_code == 404
        assert answer.json() == {"result": [], "msg": "the task ocr is switched off (TASKS)"}
        assert post(service, "/represent", photo).status_code == 404
        assert post(service, "/clip/img", photo).status_code == 200


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
