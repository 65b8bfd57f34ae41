# SPDX-License-Identifier: AGPL-3.0-only
"""The replies to a client that guesses the key. tests/contract and tests/trust test the key over HTTP."""

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


@pytest.fixture
def clock() -> list[float]:
    """The middleware's clock, in seconds."""
    return [1000.0]


@pytest.fixture
def client(clock: list[float]) -> TestClient:
    """A client of an app whose key is "right"."""
    app = Starlette(routes=[Route("/ocr", hello, methods=["POST"]), WebSocketRoute("/talk", talk)])
    app.add_middleware(ApiKeyMiddleware, "right", clock=lambda: clock[0])
    return TestClient(app, client=("::ffff:1.2.3.4", 50_000))


def headers(*keys: str) -> list[tuple[str, str]]:
    return [("api-key", key) for key in keys]


def test_ten_wrong_keys_in_a_minute_block_an_address_and_two_in_one_request_count_twice(
    client: TestClient, clock: list[float]
) -> None:
    assert client.post("/ocr", headers=headers()).status_code == 401  # a missing key does not start the minute
    clock[0] += 30
    for number in range(0, 10, 2):
        assert client.post("/ocr", headers=headers(f"{number}", f"{number + 1}")).status_code == 401
        clock[0] += 2.9
    answer = client.post("/ocr", headers=headers("right"))
    assert (answer.status_code, answer.json()) == (429, {"detail": "Too many wrong API keys"})
    assert answer.headers["retry-after"] == "46"
    clock[0] += 45.4
    assert client.post("/ocr", headers=headers("wrong")).headers["retry-after"] == "1"
    clock[0] += 0.2
    assert client.post("/ocr", headers=headers("right")).status_code == 200


def test_a_websocket_needs_the_key_too(client: TestClient) -> None:
    with client.websocket_connect("/talk", headers={"api-key": "right"}):
        pass
    with pytest.raises(WebSocketDisconnect) as refused:
        client.websocket_connect("/talk", headers={"api-key": "wrong"}).__enter__()
    assert refused.value.code == 1008
