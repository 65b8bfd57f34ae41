# SPDX-License-Identifier: AGPL-3.0-only
"""The replies to a client that guesses the key. tests/contract/test_access.py tests the key over HTTP."""

import tracemalloc
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from mt_photos_ml.api.middleware.auth import WRONG_KEYS_A_MINUTE, ApiKeyMiddleware, KeyThrottle

GUESSER, OTHER = "198.51.100.7", "198.51.100.8"


class At:
    """The middleware, whose key is "right", as clients at different addresses see it. now: its clock, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._app = ApiKeyMiddleware(PlainTextResponse("inside"), "right", clock=lambda: self.now)

    def post(self, host: str, *keys: str) -> Any:
        """The reply to a request from this address with these keys."""
        return TestClient(self._app, client=(host, 1)).post("/check", headers=[("api-key", key) for key in keys])

    def status(self, host: str, *keys: str) -> int:
        """The status of that reply; 200 if the request was let in."""
        return int(self.post(host, *keys).status_code)


@pytest.fixture
def at() -> At:
    return At()


def test_ten_wrong_keys_in_a_minute_block_one_address_and_two_in_one_request_count_twice(at: At) -> None:
    assert at.status(GUESSER) == 401  # a missing key does not start the minute
    at.now += 30
    for number in range(0, WRONG_KEYS_A_MINUTE, 2):
        assert at.status(GUESSER, f"{number}", f"{number + 1}") == 401
        at.now += 2.9
    answer = at.post(GUESSER, "right")  # blocked too, otherwise it could go on guessing
    assert (answer.status_code, answer.json()) == (429, {"detail": "Too many wrong API keys"})
    assert answer.headers["retry-after"] == "46"
    assert (at.status(OTHER, "right"), at.status(OTHER, "wrong")) == (200, 401)
    at.now += 45.4
    assert at.post(GUESSER, "wrong").headers["retry-after"] == "1"
    at.now += 0.2
    assert at.status(GUESSER, "right") == 200


def test_an_ipv6_network_counts_as_one_guesser(at: At) -> None:
    for i in range(WRONG_KEYS_A_MINUTE):
        assert at.status(f"2001:db8::{i:x}", f"guess {i}") == 401
    assert at.status("2001:db8::ffff", "right") == 429
    assert at.status("2001:db8:0:1::1", "right") == 200
    assert at.status("::ffff:198.51.100.9", "guess") == 401, "each IPv4 address counts by itself"


def test_behind_a_proxy_a_guesser_does_not_lock_out_a_client_that_has_used_the_key(at: At) -> None:
    assert at.status("172.17.0.1", "right") == 200
    assert [at.status("172.17.0.1", f"guess {i}") for i in range(3 * WRONG_KEYS_A_MINUTE)][-1] == 429
    assert at.status("172.17.0.1", "right") == 200


def test_an_old_key_sent_again_and_again_blocks_nobody(at: At) -> None:
    assert [at.status(GUESSER, "the old key") for _ in range(100)] == [401] * 100
    assert [at.status(GUESSER) for _ in range(100)] == [401] * 100
    assert at.status(GUESSER, "right") == 200


def test_any_number_of_addresses_takes_bounded_memory() -> None:
    throttle, sizes = KeyThrottle(), []
    tracemalloc.start()
    try:
        for number in range(40_000):
            throttle.seconds_to_wait(f"address {number}", [b"wrong"], False, 0.0)
            throttle.seconds_to_wait(f"address {number}", [b"right"], True, 0.0)
            if number % 20_000 == 19_999:
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] < 1.1 * sizes[0]


def test_a_websocket_needs_the_key_too() -> None:
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    client = TestClient(ApiKeyMiddleware(Starlette(routes=[WebSocketRoute("/talk", talk)]), "right"))
    with client.websocket_connect("/talk", headers={"api-key": "right"}):
        pass
    with pytest.raises(WebSocketDisconnect) as refused:
        client.websocket_connect("/talk", headers={"api-key": "wrong"}).__enter__()
    assert refused.value.code == 1008
