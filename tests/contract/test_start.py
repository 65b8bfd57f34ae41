# SPDX-License-Identifier: AGPL-3.0-only
"""What the settings promise over HTTP: the key, tasks that are off, models that can't be had. On a bare service only."""

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from contract.service import URL, Service, bare_environment, started
from photos import jpeg

from demo.pictures import colour_photo

pytestmark = pytest.mark.skipif(bool(URL), reason="a service that runs already can't be started with other settings")

PHOTO = jpeg(colour_photo("red", (320, 240)))


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the default key, without OCR, with no models and no hub to fetch them from."""
    folder = tmp_path_factory.mktemp("lacking")
    settings = {
        "MACHINE_LEARNING_CACHE_FOLDER": str(folder / "cache"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "TASKS": "clip,faces",
        "FACE_MIN_SCORE": "0.8",
    }
    with started(folder, settings) as service:
        yield service


def test_the_default_key_opens_where_none_is_set(lacking: Service) -> None:
    answer = lacking.http.post("/check", headers={"api-key": "mt_photos_ai_extra"})
    assert (answer.status_code, answer.json()["result"]) == (200, "pass")
    assert lacking.http.post("/check", headers={"api-key": "no-key"}).status_code == 401


def test_check_tells_the_settings_of_faces(lacking: Service) -> None:
    told = lacking.http.post("/check").json()
    assert (told["facial_min_score"], told["recognition_model"]) == (0.8, "buffalo_l")


def test_a_task_that_is_off_is_not_found(lacking: Service) -> None:
    answer = lacking.post_photo("/ocr", PHOTO)
    assert answer.status_code == 404
    assert answer.json() == {"result": [], "msg": answer.json()["msg"]}
    assert "ocr" in answer.json()["msg"]


@pytest.mark.parametrize("route", ["/clip/img", "/clip/txt", "/represent"])
def test_without_its_model_a_task_is_to_be_asked_again_later(lacking: Service, route: str) -> None:
    text = route == "/clip/txt"
    answer = lacking.http.post(route, json={"text": "red"}) if text else lacking.post_photo(route, PHOTO)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json() == {"result": [], "msg": answer.json()["msg"]}
    assert "127.0.0.1:9" in answer.json()["msg"]  # what was tried


@pytest.mark.parametrize("headers", [{}, {"api-key": "any"}])
def test_no_key_as_the_key_opens_to_all(tmp_path_factory: pytest.TempPathFactory, headers: dict[str, str]) -> None:
    with started(tmp_path_factory.mktemp("open"), {"API_AUTH_KEY": "no-key"}) as service:
        assert httpx.post(f"{service.url}/check", headers=headers, trust_env=False).json()["result"] == "pass"


@pytest.mark.parametrize(
    ("name", "value"), [("API_AUTH_KEY", ""), ("API_AUTH_KEY", " "), ("FACE_MIN_SCORE", "2"), ("TASKS", "clip,sums")]
)
def test_a_value_that_can_not_be_used_stops_the_start_with_one_line(name: str, value: str) -> None:
    command = [sys.executable, "-m", "mt_photos_ml", "serve", "--host", "127.0.0.1"]
    done = subprocess.run(command, env=bare_environment({name: value}), capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert name in done.stderr
    assert value in done.stderr
    assert "expected" in done.stderr
