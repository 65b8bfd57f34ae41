# SPDX-License-Identifier: AGPL-3.0-only
"""The service as a process: its socket, signals, restarts."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hub_server import HubServer
from mt_photos_ml.server.supervise import bind
from service import Service, anonymous_mb, loaded, post, running, until

RESTART_LOG = "starting afresh"


def test_a_header_without_end_is_refused_before_it_fills_the_memory(service: Service) -> None:
    before = anonymous_mb(service.pid)
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(ConnectionError):
            _send_for_ever(connection)
    with service.client() as client:
        assert client.get("/ping").text == "pong"
    assert anonymous_mb(service.pid) - before < 10


def _send_for_ever(connection: socket.socket) -> None:
    for _ in range(1000):
        connection.sendall(b"A: b\r\n" * 10_000)


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


def test_a_reply_in_two_pieces_goes_out_at_once() -> None:
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        listening.setblocking(True)
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
