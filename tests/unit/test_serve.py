# SPDX-License-Identifier: AGPL-3.0-only
"""The service as a process: its socket, signals, restarts."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

import httpx
import pytest

from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo
from hub_server import HubServer
from mt_photos_ml.settings import DEFAULT_CLIP
from photos import jpeg
from service import Service, anonymous_mb, answers, environment, loaded, post, run_command, running, until
from trust.raw import connect


def test_an_endless_header_is_refused_before_it_fills_the_memory(service: Service) -> None:
    before = anonymous_mb(service.pid)
    with connect(service.url) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(ConnectionError):
            connection.sendall(b"A: b\r\n" * 10_000_000)
    assert answers(f"{service.url}/ping", 60)
    assert anonymous_mb(service.pid) - before < 10


@pytest.fixture
def service(cache: Path, tmp_path: Path) -> Iterator[Service]:
    """A service for each test, which may end it."""
    with running(tmp_path, demo_environment(cache)) as started:
        yield started


def test_sigterm_does_not_wait_for_a_download(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "visual/preprocess_cfg.json": b"{}", "visual/model.onnx": bytes(1_000_000)}
    with HubServer() as hub:
        hub.repositories[f"immich-app/{DEFAULT_CLIP}"] = files
        hub.stalls, hub.after = 99, 1000
        settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"), "HF_ENDPOINT": hub.endpoint}
        with running(tmp_path, settings) as service, service.client() as client:
            client.post("/api/models/clip/visual/pull")
            until(lambda: "visual/model.onnx" in hub.sent)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(20) == 0


BUSY_IN_ONNXRUNTIME = """
import os, threading
import numpy, onnxruntime
from mt_photos_ml.runtime.ort import DOUBLE

def run():
    session = onnxruntime.InferenceSession(DOUBLE, providers=["CPUExecutionProvider"])
    while True:
        session.run(None, {"x": numpy.zeros(1, numpy.float32)})

os.register_at_fork(after_in_child=lambda: threading.Thread(target=run, daemon=True).start())
"""


def test_a_process_that_is_planning_in_the_background_ends_well(cache: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "python").mkdir()
    (folder / "sitecustomize.py").write_text(BUSY_IN_ONNXRUNTIME)
    path = f"{environment({})['PYTHONPATH']}{os.pathsep}{folder}"
    with running(tmp_path, {**demo_environment(cache), "PYTHONPATH": path}) as service, service.client() as client:
        before = service.pid
        assert client.post("/restart_v2").json() == {"result": "pass"}
        wait_for_another(service, before)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
        log = service.log.read_text()
    assert [line for line in log.splitlines() if "SIG" in line or "crashed" in line or "terminate" in line] == []


def test_a_reply_in_two_pieces_is_sent_at_once(service: Service) -> None:
    """Without TCP_NODELAY the second piece would wait for the client's delayed acknowledgement, 40 ms."""
    with service.client() as client:
        client.get("/ping")
        seconds = [client.get("/openapi.json").elapsed.total_seconds() for _ in range(20)]
    assert median(seconds) < 0.04


def wait_for_another(service: Service, pid: int) -> None:
    """Waits until another worker than `pid` serves."""
    until(lambda: service.pid not in (0, pid))
    assert answers(f"{service.url}/ping", 60)


def kill_worker(service: Service, number: int = signal.SIGKILL) -> float:
    """Ends the worker by this signal. Returns the seconds until another serves."""
    killed, began = service.pid, time.monotonic()
    os.kill(killed, number)
    wait_for_another(service, killed)
    return time.monotonic() - began


def test_crashed_workers_restart_after_a_growing_pause_that_sigterm_ends(service: Service) -> None:
    for _ in range(3):  # a requested restart has no pause and does not count as a crash
        before = service.pid
        with service.client() as client:
            client.post("/restart_v2")
        wait_for_another(service, before)
    assert "crashed" not in service.log.read_text()
    waits = [kill_worker(service) for _ in range(4)]
    assert waits[3] - min(waits[:2]) > 1, "2 s after 0 and 0.25 s"
    began = time.monotonic()
    os.kill(service.pid, signal.SIGKILL)
    time.sleep(0.3)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(30) == 0
    assert time.monotonic() - began < 4, "the pause would have been 4 s"


def test_a_crash_logs_its_traceback_and_after_a_bus_error_models_are_no_longer_mapped(service: Service) -> None:
    kill_worker(service, signal.SIGBUS)
    until(lambda: "read into memory" in service.log.read_text())
    log = service.log.read_text()
    assert "Fatal Python error: Bus error" in log
    assert re.search(r'File ".*", line \d+ in ', log)
    assert "PREPARE_MODELS=false" in log, "the new worker lists it as a setting"


def test_an_idle_connection_stays_open_for_a_moment_when_the_process_ends(service: Service) -> None:
    address = service.url.removeprefix("http://")
    idle, closed, busy = (HTTPConnection(address, timeout=60) for _ in range(3))
    assert ping(idle) == ping(closed) == (200, "keep-alive")
    service.process.send_signal(signal.SIGTERM)
    closed.close()
    while ping(busy)[1] != "close":  # until the process has handled the signal
        pass
    time.sleep(0.3)  # without its wait of a second, it would close idle connections now
    assert ping(idle) == (503, "close")
    assert service.process.wait(30) == 0
    assert "Traceback" not in service.log.read_text()


def test_for_drain_seconds_after_sigterm_photos_are_accepted_and_ready_is_503(
    cache: Path, tmp_path: Path, photo: bytes
) -> None:
    with running(tmp_path, {**demo_environment(cache), "DRAIN": "6"}) as service, service.client(None) as stranger:
        assert stranger.get("/ready").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        until(lambda: stranger.get("/ready").status_code == 503)
        assert post(service, "/ocr", photo).status_code == 200
        assert service.process.wait(30) == 0
        assert "GET /ready" not in service.log.read_text(), "proxies ask for it all the time"


def ping(connection: HTTPConnection) -> tuple[int, str]:
    """The status of the answer, and whether the connection stays open after it."""
    connection.request("GET", "/ping")
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.getheader("connection", "keep-alive")


def test_ctrl_c_reaches_every_process_and_requests_in_flight_are_answered(
    cache: Path, tmp_path: Path, photo: bytes
) -> None:
    with running(tmp_path, demo_environment(cache), wrapper=["setsid"]) as service, ThreadPoolExecutor(4) as threads:
        replies = [threads.submit(post, service, "/ocr", photo) for _ in range(4)]
        with service.client() as client:
            until(lambda: bool(loaded(client)))
        time.sleep(0.2)
        os.killpg(service.process.pid, signal.SIGINT)
        assert [reply.result().status_code for reply in replies] == [200] * 4
        assert service.process.wait(30) == 0


@pytest.mark.parametrize(
    ("settings", "port", "line"),
    [
        ({"FACE_MIN_SCORE": "2", "HTTP_PORT": "x"}, 1, "HTTP_PORT=x: expected"),
        ({"OCR_MODEL_NAME": "none-such"}, 1, "OCR_MODEL_NAME=none-such: expected"),
        ({}, 0, "0 is not a port: expected 1 to 65535"),
        ({}, "http", "http is not a port: expected 1 to 65535"),
    ],
)
def test_invalid_settings_stop_the_start_with_a_line_each(settings: dict[str, str], port: object, line: str) -> None:
    ended = run_command(settings, "serve", "--host", "127.0.0.1", "--port", port)
    assert ended.returncode == 2
    assert line in ended.stderr
    lines = [said for said in ended.stderr.splitlines() if said.startswith("mt-photos-ml: ")]
    assert len(lines) == len(settings)


def test_a_port_that_is_taken_stops_the_start_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_command({}, "serve", "--host", "127.0.0.1", "--port", port)
    assert ended.returncode != 0
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"mt-photos-ml: can't listen on 127.0.0.1 port {port}: Address already in use")


def reached(port: int) -> list[str]:
    """The addresses of this machine at which the service answers."""
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        there = []
        for address in ("127.0.0.1", "[::1]"):
            with contextlib.suppress(httpx.ConnectError):
                assert httpx.get(f"http://{address}:{port}/ping").text == "pong"
                there.append(address)
        return there
    pytest.skip("no IPv6 on this machine")


@pytest.mark.parametrize(
    ("host", "addresses"),
    [(None, ["127.0.0.1", "[::1]"]), ("::", ["127.0.0.1", "[::1]"]), ("0.0.0.0", ["127.0.0.1"])],
)
def test_it_listens_on_ipv6_and_ipv4_unless_the_host_is_an_ipv4_address(
    cache: Path, tmp_path: Path, host: str | None, addresses: list[str]
) -> None:
    with running(tmp_path, demo_environment(cache), host=host) as service:
        port = int(service.url.rpartition(":")[2])
        assert reached(port) == addresses
        assert f"on port {port}, as " in service.log.read_text()


def test_a_proxy_on_this_machine_is_trusted_on_a_dual_stack_socket(cache: Path, tmp_path: Path) -> None:
    """The proxy's address is ::ffff:127.0.0.1 there."""
    with running(tmp_path, demo_environment(cache), host="::") as service, service.client(None) as proxy:

        def guess(client: str, key: str) -> int:
            return proxy.post("/check", headers={"x-forwarded-for": client, "api-key": key}).status_code

        assert [guess("203.0.113.5", f"guess {i}") for i in range(11)] == [401] * 10 + [429]
        assert guess("203.0.113.6", "guess") == 401


def test_two_processes_serve_behind_one_socket(cache: Path, tmp_path: Path) -> None:
    red = jpeg(colour_photo("red", (640, 480)))
    with running(tmp_path, {**demo_environment(cache), "MACHINE_LEARNING_WORKERS": "2"}) as service:

        def both_serve() -> bool:
            assert post(service, "/clip/img", red).status_code == 200
            return service.log.read_text().count("loaded clip/demo-colours/visual") == 2

        until(both_serve)
        before = service.pid
        os.kill(before, signal.SIGKILL)
        assert [post(service, "/clip/img", red).status_code for _ in range(5)] == [200] * 5
        wait_for_another(service, before)
