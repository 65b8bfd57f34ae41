# SPDX-License-Identifier: AGPL-3.0-only
"""The key, and who guesses it: by address, for a minute. Over HTTP the key is in tests/contract and tests/trust."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.middleware import auth
from mt_photos_ml.api.middleware.auth import ApiKeyMiddleware, Guesses
from service import running


def test_no_key_lets_everybody_in(cache: Path, tmp_path: Path) -> None:
    settings = {**demo_environment(cache), "API_AUTH_KEY": "no-key"}
    with running(tmp_path, settings) as service, service.client(key=None) as client:
        assert client.post("/check").json()["result"] == "pass"


class Clock(SimpleNamespace):
    """Stands in for the module time."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(auth, "time", stopped)
    return stopped


def guess(guesses: Guesses, numbers: range, client: str = "1.2.3.4") -> list[float]:
    """Wrong keys from an address: how long each has to wait."""
    return [guesses.seconds_to_wait(client, [b"%d" % number], False) for number in numbers]


def right(guesses: Guesses, client: str = "1.2.3.4") -> float:
    return guesses.seconds_to_wait(client, [b"right"], True)


def test_ten_different_wrong_keys_a_minute_are_heard(clock: Clock) -> None:
    guesses = Guesses()
    assert guess(guesses, range(10)) == [0] * 10
    clock.now += 15
    assert guess(guesses, range(10, 12)) == [45, 45]
    assert len(guesses._wrong["1.2.3.4"][1]) == 10, "what comes after that takes no memory"
    assert guess(guesses, range(1), "1.2.3.5") == [0]
    clock.now += 44.5
    assert guess(guesses, range(1)) == [0.5]
    clock.now += 0.5
    assert guess(guesses, range(10)) == [0] * 10
    assert guess(guesses, range(1)) == [60]


def test_the_minute_begins_with_the_first_wrong_key(clock: Clock) -> None:
    guesses = Guesses()
    for number in range(10):
        guess(guesses, range(number, number + 1))
        clock.now += 5
    assert guess(guesses, range(1)) == [10]


def test_an_old_key_over_and_over_guesses_nothing(clock: Clock) -> None:
    guesses = Guesses()
    assert guess(guesses, range(1)) * 20 == [0] * 20
    assert [guess(guesses, range(1)) for _ in range(20)] == [[0]] * 20
    assert right(guesses) == 0


def test_no_key_at_all_guesses_nothing_and_two_at_once_are_two(clock: Clock) -> None:
    guesses = Guesses()
    assert [guesses.seconds_to_wait("a", [], False) for _ in range(20)] == [0] * 20
    assert not guesses._wrong
    for number in range(0, 10, 2):
        guesses.seconds_to_wait("a", [b"%d" % number, b"%d" % (number + 1)], False)
    assert guess(guesses, range(1), "a") == [60]


def test_the_right_key_found_by_guessing_waits_too_unless_it_was_known_before(clock: Clock) -> None:
    guesses = Guesses()
    assert right(guesses, "a proxy") == 0
    for client in ("a proxy", "a stranger"):
        guess(guesses, range(10), client)
    assert right(guesses, "a proxy") == 0
    assert right(guesses, "a stranger") == 60
    assert len(guesses._wrong["a stranger"][1]) == 10
    assert guess(guesses, range(1), "a proxy") == [60]
    clock.now += 60
    assert right(guesses, "a stranger") == 0


def test_of_many_addresses_the_one_that_was_not_seen_for_the_longest_is_forgotten(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert auth._REMEMBERED == 10_000
    monkeypatch.setattr(auth, "_REMEMBERED", 2)
    guesses = Guesses()
    for client in "ab":
        guess(guesses, range(9), client)
    guess(guesses, range(9, 10), "a")
    guess(guesses, range(1), "c")
    assert guess(guesses, range(1), "a") == [60]
    assert guess(guesses, range(9, 11), "b") == [0, 0], "its nine guesses are forgotten"


@pytest.mark.parametrize(
    ("client", "network"),
    [
        (("192.168.1.7", 1), "192.168.1.7"),
        (("::ffff:192.168.1.7", 1), "192.168.1.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 1), "2001:db8:1:2::/64"),
        (("a name", 1), "a name"),
        (None, ""),
    ],
)
def test_an_address_of_ipv6_counts_as_its_network(client: tuple[str, int] | None, network: str) -> None:
    assert auth._network({"client": client}) == network
    assert auth._network({}) == ""


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


def guarded() -> Starlette:
    methods = ["GET", "HEAD", "POST"]
    routes = [Route(path, hello, methods=methods) for path in ("/", "/ping", "/ocr", "/predict")]
    app = Starlette(routes=[*routes, WebSocketRoute("/talk", talk)])
    app.add_middleware(ApiKeyMiddleware, "right", {("POST", "/predict")})
    return app


def client(*keys: str, address: str = "1.2.3.4", app: Starlette | None = None) -> TestClient:
    made = TestClient(app or guarded(), client=(address, 50_000))
    made.headers = [("api-key", key) for key in keys]
    return made


def test_who_has_the_key_comes_in_and_who_has_not_reads_why() -> None:
    assert client("right").post("/ocr").text == "hello"
    for keys in ((), ("wrong",), ("",), ("right", "right"), ("right", "wrong"), ("Right",)):
        answer = client(*keys).post("/ocr")
        assert (answer.status_code, answer.json()) == (401, {"detail": "Invalid API key"}), keys


@pytest.mark.parametrize(
    ("method", "path", "is_open"),
    [
        ("GET", "/", True),
        ("HEAD", "/", True),
        ("GET", "/ping", True),
        ("HEAD", "/ping", True),
        ("POST", "/predict", True),
        ("GET", "/predict", False),
        ("POST", "/", False),
        ("POST", "/ping", False),
        ("GET", "/ocr", False),
    ],
)
def test_the_page_the_ping_and_what_is_said_to_be_open_need_no_key(method: str, path: str, is_open: bool) -> None:
    assert client().request(method, path).status_code == (200 if is_open else 401)


def test_who_guesses_reads_when_to_come_again(clock: Clock) -> None:
    app = guarded()
    guesser, friend = client(address="::ffff:1.2.3.4", app=app), client("right", address="1.2.3.5", app=app)
    for number in range(10):
        assert guesser.post("/ocr", headers={"api-key": str(number)}).status_code == 401
    clock.now += 14.5
    answer = guesser.post("/ocr", headers={"api-key": "right"})
    assert (answer.status_code, answer.json()) == (429, {"detail": "Too many wrong API keys"})
    assert answer.headers["retry-after"] == "46"
    assert friend.post("/ocr").text == "hello"
    for number in range(10):
        friend.post("/ocr", headers={"api-key": str(number)})
    assert friend.post("/ocr").text == "hello", "it had shown the key before"
    clock.now += 46
    assert guesser.post("/ocr", headers={"api-key": "right"}).text == "hello"


def test_a_websocket_needs_the_key_too() -> None:
    with client("right").websocket_connect("/talk"):
        pass
    with pytest.raises(WebSocketDisconnect) as refused, client("wrong").websocket_connect("/talk"):
        pass
    assert refused.value.code == 1008


def test_the_start_of_the_service_needs_no_key() -> None:
    with client() as started:  # runs the app's lifespan
        assert started.get("/ping").text == "hello"


@pytest.mark.anyio
async def test_not_a_byte_is_read_without_the_key() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/ocr", "headers": [], "client": ("1.2.3.4", 1)}
    await ApiKeyMiddleware(Starlette(), "right")(scope, receive, send)
    assert sent[0]["status"] == 401
