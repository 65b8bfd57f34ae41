# SPDX-License-Identifier: AGPL-3.0-only
"""What a client that guesses the key is answered. Over HTTP the key is tested in tests/contract and tests/trust."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from mt_photos_ml.api.middleware.auth import ApiKeyMiddleware


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


class Guarded:
    """An app behind the key "right", and its clock in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.app = Starlette(routes=[Route("/ocr", hello, methods=["POST"]), WebSocketRoute("/talk", talk)])
        self.app.add_middleware(ApiKeyMiddleware, "right", clock=lambda: self.now)

    def client(self, *keys: object, address: str = "1.2.3.4") -> TestClient:
        client = TestClient(self.app, client=(address, 50_000))
        client.headers = [("api-key", str(key)) for key in keys]
        return client


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


def test_ten_different_wrong_keys_are_heard_in_the_minute_from_the_first(guarded: Guarded) -> None:
    assert guarded.client().post("/ocr").status_code == 401  # no key: the minute has not begun
    guarded.now += 30
    for number in range(10):
        assert guarded.client(number).post("/ocr").status_code == 401
        guarded.now += 1.45
    answer = guarded.client("right").post("/ocr")
    assert (answer.status_code, answer.json()) == (429, {"detail": "Too many wrong API keys"})
    assert answer.headers["retry-after"] == "46"
    guarded.now += 45.4
    assert guarded.client("wrong").post("/ocr").headers["retry-after"] == "1"
    guarded.now += 0.2
    assert guarded.client("right").post("/ocr").status_code == 200


def test_two_keys_at_once_are_no_key_and_two_guesses(guarded: Guarded) -> None:
    for number in range(0, 10, 2):
        assert guarded.client(number, f"{number}+").post("/ocr").status_code == 401
    assert guarded.client("right", address="::ffff:1.2.3.4").post("/ocr").status_code == 429


def test_a_websocket_needs_the_key_too(guarded: Guarded) -> None:
    with guarded.client("right").websocket_connect("/talk"):
        pass
    with pytest.raises(WebSocketDisconnect) as refused, guarded.client("wrong").websocket_connect("/talk"):
        pass
    assert refused.value.code == 1008
