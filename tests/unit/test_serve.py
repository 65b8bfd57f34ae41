# SPDX-License-Identifier: AGPL-3.0-only
"""The service as a process: settings at its start, signals, restarts, and what it says when it can't do a thing."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo, text_page
from hub_server import HubServer
from mt_photos_ml.cli import _bound
from service import KEY, Service, environment, running

RESTART_LOG = "starting afresh"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def photo() -> bytes:
    page, _ = text_page(["First line of many", "Second line"], (2400, 1800))
    return jpeg(page)


@pytest.fixture
def service(cache: Path, tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path, demo_environment(cache)) as started:
        yield started


def jpeg(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def post(service: Service, route: str, photo: bytes) -> httpx.Response:
    with service.client() as client:
        return client.post(route, files={"file": photo})


def until(true: Callable[[], bool]) -> None:
    """Waits for it, half a minute at most."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def loaded(client: httpx.Client) -> list[str]:
    names: list[str] = client.post("/check").json()["loaded"]
    return names


def start(**settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mt_photos_ml", "serve", "--host", "127.0.0.1", "--port", "1"]
    return subprocess.run(command, env=environment(settings), capture_output=True, text=True, timeout=30)


def test_a_setting_that_cannot_be_used_stops_the_start_with_one_line() -> None:
    ended = start(OCR_MIN_SCORE="abc")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("mt-photos-ml: OCR_MIN_SCORE=abc: expected")


def test_a_port_that_is_taken_is_said_in_words(service: Service) -> None:
    port = service.url.rpartition(":")[2]
    command = [sys.executable, "-m", "mt_photos_ml", "serve", "--host", "127.0.0.1", "--port", port]
    ended = subprocess.run(command, env=environment({}), capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"mt-photos-ml: can't listen on 127.0.0.1 port {port}: ")


@pytest.mark.parametrize("port", ["0", "-1", "99999", "http"])
def test_a_port_that_is_none_is_said_in_words(port: str) -> None:
    command = [sys.executable, "-m", "mt_photos_ml", "serve", f"--port={port}"]
    ended = subprocess.run(command, env=environment({}), capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert "expected 1 to 65535" in ended.stderr


def test_a_header_without_end_is_refused_before_it_fills_the_memory(service: Service) -> None:
    before = _anonymous_mb(service.process.pid)
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(ConnectionError):
            _send_for_ever(connection)
    with service.client() as client:
        assert client.get("/ping").text == "pong"
    assert _anonymous_mb(service.process.pid) - before < 10


def _send_for_ever(connection: socket.socket) -> None:
    for _ in range(1000):
        connection.sendall(b"A: b\r\n" * 10_000)


def test_the_start_says_models_vector_length_and_that_it_is_the_demo(service: Service) -> None:
    log = service.log.read_text()
    assert "clip: demo-colours, vectors of 512 numbers" in log
    assert "this is the demo" in log
    assert KEY not in log
    with service.client() as client:
        assert client.post("/check").json()["demo"] is True
        assert 'class="demo"' in client.get("/").text


def test_every_request_has_a_line_in_the_log(service: Service, photo: bytes) -> None:
    post(service, "/ocr", photo)
    (line,) = [line for line in service.log.read_text().splitlines() if "POST /ocr" in line]
    for word in ("200", "JPEG 2400x1800", "MB", "decode", "model", "total"):
        assert word in line


def test_a_line_break_in_a_path_does_not_forge_a_line_of_the_log(service: Service) -> None:
    httpx.get(f"{service.url}/a%0aINFO%20POST%20/forged%20200")
    assert not any(line.startswith("INFO POST /forged") for line in service.log.read_text().splitlines())


def test_sigterm_lets_requests_in_flight_finish(service: Service, photo: bytes) -> None:
    with ThreadPoolExecutor(6) as threads, service.client() as client:
        answers = [threads.submit(client.post, "/ocr", files={"file": photo}) for _ in range(6)]
        until(lambda: bool(loaded(client)))
        time.sleep(0.2)  # for the last of the six to be let in: who only knocks when it ends is refused
        service.process.send_signal(signal.SIGTERM)
        texts = [answer.result().json()["result"]["texts"] for answer in answers]
    assert texts == [["First line of many", "Second line"]] * 6
    assert service.process.wait(30) == 0


def test_sigterm_does_not_wait_for_a_download(tmp_path: Path, photo: bytes) -> None:
    name = "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k"
    files = {"config.json": b"{}", "visual/preprocess_cfg.json": b"{}", "visual/model.onnx": bytes(1_000_000)}
    with HubServer() as hub:
        hub.repositories[f"immich-app/{name}"] = files
        hub.stalls, hub.after = 99, 1000
        settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"), "HF_ENDPOINT": hub.endpoint}
        with running(tmp_path, settings) as service, ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(post, service, "/clip/img", photo)
            until(lambda: "visual/model.onnx" in hub.sent)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(50) == 0
            assert waiting.result().status_code == 503


def test_restart_v2_starts_afresh_after_what_is_in_flight_and_refuses_nobody(service: Service, photo: bytes) -> None:
    with ThreadPoolExecutor(4) as clients, service.client() as client:
        answers = [clients.submit(post, service, "/ocr", photo) for _ in range(4)]
        until(lambda: bool(loaded(client)))
        assert client.post("/restart_v2").json() == {"result": "pass"}
        assert [answer.result().status_code for answer in answers] == [200] * 4
    with service.client() as client:
        until(lambda: not loaded(client))  # the old process may have taken this connection yet
    assert post(service, "/ocr", photo).status_code == 200
    assert service.log.read_text().count(RESTART_LOG) == 1


def test_restart_drops_what_is_loaded(service: Service, photo: bytes) -> None:
    post(service, "/ocr", photo)
    with service.client() as client:
        assert len(loaded(client)) == 2
        assert client.post("/restart").json() == {"result": "pass"}
        assert loaded(client) == []


def test_memory_comes_back_when_models_are_dropped(service: Service, photo: bytes) -> None:
    before = _anonymous_mb(service.process.pid)
    post(service, "/ocr", photo)
    loaded = _anonymous_mb(service.process.pid)
    with service.client() as client:
        client.post("/restart")
    after = _anonymous_mb(service.process.pid)
    assert loaded - before > 100
    assert after - before < 0.4 * (loaded - before)


def _anonymous_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


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


def test_no_key_lets_everybody_in(cache: Path, tmp_path: Path) -> None:
    settings = {**demo_environment(cache), "API_AUTH_KEY": "no-key"}
    with running(tmp_path, settings) as service, service.client(key=None) as client:
        assert client.post("/check").json()["result"] == "pass"


def test_a_body_over_the_limit_is_413_whether_declared_or_not(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path, {**demo_environment(cache), "MAX_UPLOAD_MB": "1"}) as service, service.client() as client:
        large = b"x" * 1_200_000
        declared = client.post("/ocr", files={"file": large})
        type_ = "multipart/form-data; boundary=b"
        head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        chunked = client.post("/ocr", content=iter([head, large]), headers={"content-type": type_})
        for answer in (declared, chunked):
            assert answer.status_code == 413
            assert answer.json() == {"result": [], "msg": "the upload is over the limit of 1 MB"}


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


def test_the_command_looks_after_the_cache(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    build(folder)
    (folder / "clip" / "old" / "visual").mkdir(parents=True)
    outdated = folder / "clip" / "demo-colours" / "visual" / "prepared" / "0123456789abcdef"
    outdated.mkdir(parents=True)

    def run(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mt_photos_ml", *arguments],
            env=environment(demo_environment(folder)),
            input=answer,
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert "in use" in run("models", "list").stdout
    assert run("models", "pull").returncode == 0
    assert (folder / "ocr" / "PP-OCRv6_small" / "recognition" / "model.onnx").is_file()
    verified = run("models", "verify")
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.count(": fine") == 6
    (folder / "ocr" / "PP-OCRv6_small" / "detection" / "model.onnx").write_bytes(b"half")
    assert run("models", "verify").returncode == 1
    assert "clip/old" in run("models", "prune", answer="n\n").stdout
    assert (folder / "clip" / "old").exists()
    assert run("models", "prune", answer="y\n").returncode == 0
    assert not (folder / "clip" / "old").exists()
    assert not outdated.exists()
    assert (folder / "clip" / "demo-colours").exists()


def test_the_doctor_has_a_line_for_each_check_and_an_exit_code(cache: Path, tmp_path: Path) -> None:
    def run(settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mt_photos_ml", "doctor"],
            env=environment(settings),
            capture_output=True,
            text=True,
            timeout=60,
        )

    well = run({**demo_environment(cache), "API_AUTH_KEY": "own", "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert well.returncode == 0, well.stdout
    for what in ("settings", "key", "decoder: JPEG", "runtime: onnxruntime", "cache", "model", "endpoint"):
        assert what in well.stdout
    file = tmp_path / "file"
    file.touch()
    ill = run({"MACHINE_LEARNING_CACHE_FOLDER": str(file / "cache"), "OCR_MODEL_NAME": "nothing"})
    assert ill.returncode == 1
    assert "FAIL  cache" in ill.stdout
    assert "FAIL  settings: OCR_MODEL_NAME=nothing" in ill.stdout


def test_the_log_level_hides_the_requests(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path, {**demo_environment(cache), "IMMICH_LOG_LEVEL": "error"}) as service:
        with service.client() as client:
            assert json.loads(client.post("/check").content)["result"] == "pass"
            client.post("/clip/txt", json={"text": "red"})
        assert service.log.read_text() == ""


def test_a_reply_in_two_pieces_goes_out_at_once() -> None:
    with _bound("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        listening.setblocking(True)
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
