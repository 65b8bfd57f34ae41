# SPDX-License-Identifier: AGPL-3.0-only
"""The service as it is put together: what it says at the start, loads, and lets go of."""

from pathlib import Path

from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo
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
