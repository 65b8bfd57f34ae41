# SPDX-License-Identifier: AGPL-3.0-only
"""The key, and clients that guess it. Over HTTP the key is tested in tests/contract and tests/trust."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.middleware.auth import ApiKeyMiddleware
from service import running


def test_no_key_lets_everybody_in(cache: Path, tmp_path: Path) -> None:
    settings = {**demo_environment(cache), "API_AUTH_KEY": "no-key"}
    with running(tmp_path, settings) as service, service.client(key=None) as client:
        assert client.post("/check").json()["result"] == "pass"


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


class Guarded:
    """An app behind the key "right", and a clock in seconds that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0
        routes = [Route(path, hello, methods=["GET", "POST"]) for path in ("/", "/ping", "/ocr", "/predict")]
        self.app = Starlette(routes=[*routes, WebSocketRoute("/talk", talk)])
        self.app.add_middleware(ApiKeyMiddleware, "right", {("POST", "/predict")}, lambda: self.now)

    def client(self, *keys: str, address: str = "1.2.3.4") -> TestClient:
        client = TestClient(self.app, client=(address, 50_000))
        client.headers = [("api-key", key) for key in keys]
        return client

    def statuses(self, *keys: object, address: str = "1.2.3.4") -> list[int]:
        """What requests with these keys are answered, one after the other."""
        return [self.client(str(key), address=address).post("/ocr").status_code for key in keys]

    def wait(self, address: str = "1.2.3.4") -> str:
        """Retry-After of a request with a wrong key."""
        return self.client("wrong", address=address).post("/ocr").headers["retry-after"]


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


def test_ten_different_wrong_keys_are_heard_in_the_minute_from_the_first(guarded: Guarded) -> None:
    assert guarded.client().post("/ocr").status_code == 401  # no key: the minute has not begun
    guarded.now += 30
    for number in range(10):
        assert guarded.statuses(number) == [401]
        guarded.now += 1.45
    answer = guarded.client("right").post("/ocr")
    assert (answer.status_code, answer.json()) == (429, {"detail": "Too many wrong API keys"})
    assert answer.headers["retry-after"] == "46"
    assert guarded.statuses("right", "wrong", address="1.2.3.5") == [200, 401]
    guarded.now += 45.4
    assert guarded.wait() == "1"
    guarded.now += 0.2
    assert guarded.statuses(*range(10), "right") == [401] * 10 + [429]


def test_two_keys_at_once_are_no_key_and_two_guesses(guarded: Guarded) -> None:
    for number in range(0, 10, 2):
        assert guarded.client(f"{number}", f"{number}+").post("/ocr").status_code == 401
    assert guarded.statuses("right", address="::ffff:1.2.3.4") == [429]


@pytest.mark.parametrize(
    ("method", "path", "is_open"),
    [
        *((method, path, True) for method in ("GET", "HEAD") for path in ("/", "/ping")),
        ("POST", "/predict", True),
        *((method, path, False) for method, path in [("GET", "/predict"), ("POST", "/"), ("POST", "/ping")]),
    ],
)
def test_only_the_page_the_ping_and_what_was_said_to_be_open_need_no_key(
    guarded: Guarded, method: str, path: str, is_open: bool
) -> None:
    assert guarded.client().request(method, path).status_code == (200 if is_open else 401)


def test_a_websocket_needs_the_key_too(guarded: Guarded) -> None:
    with guarded.client("right").websocket_connect("/talk"):
        pass
    with pytest.raises(WebSocketDisconnect) as refused, guarded.client("wrong").websocket_connect("/talk"):
        pass
    assert refused.value.code == 1008


def test_the_start_of_the_service_needs_no_key(guarded: Guarded) -> None:
    with guarded.client() as started:  # runs the app's lifespan
        assert started.get("/ping").text == "hello"
