# SPDX-License-Identifier: AGPL-3.0-only
"""How a process ends: who is waited for, for how long, and what is said to whom. As a process: test_serve.py."""

import asyncio
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.server import ServerState

import clock
from mt_photos_ml.api.middleware.lifecycle import Lifecycle, LifecycleMiddleware
from mt_photos_ml.server.worker import LINGER_SECONDS, LingeringH11Protocol

Headers = list[tuple[bytes, bytes]]
CLOSE = (b"connection", b"close")


@pytest.fixture
def ended() -> Iterator[list[tuple[int, float]]]:
    """The signals that reach the server, and when by the clock of the loop; it has handlers before ours are set."""
    calls: list[tuple[int, float]] = []

    def server(number: int, frame: FrameType | None) -> None:
        calls.append((number, clock.now()))

    before = {number: signal.signal(number, server) for number in (signal.SIGTERM, signal.SIGINT)}
    yield calls
    for number, handler in before.items():
        assert signal.signal(number, handler) is server, "the server's are back when ours end"


async def told(cycle: Lifecycle, number: int, in_flight: int = 0, seconds: float = 100) -> None:
    """A signal comes while so many requests are in flight, which they are for so long."""
    cycle.in_flight = in_flight
    with cycle.signals():
        signal.raise_signal(number)
        await asyncio.sleep(seconds)
        cycle.in_flight = 0
        await asyncio.sleep(1)


def test_sigterm_ends_the_server_at_once_if_nobody_is_waiting(ended: list[tuple[int, float]]) -> None:
    cycle = Lifecycle()
    clock.run(told(cycle, signal.SIGTERM))
    assert ended == [(signal.SIGTERM, 0)]
    assert cycle.is_stopping is True
    assert cycle.is_restarting is False


def test_what_is_in_flight_is_waited_for(ended: list[tuple[int, float]], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        clock.run(told(Lifecycle(), signal.SIGTERM, in_flight=3, seconds=20.02))
    assert ended == [(signal.SIGTERM, 20.05)]
    assert "stopping once 3 requests are answered" in caplog.text


def test_after_fifty_seconds_it_ends_all_the_same(ended: list[tuple[int, float]]) -> None:
    clock.run(told(Lifecycle(), signal.SIGTERM, in_flight=1))
    assert [(number, round(when)) for number, when in ended] == [(signal.SIGTERM, 50)]


def test_sigint_asks_for_another_process(ended: list[tuple[int, float]]) -> None:
    """Upstream's app sends it to its own process when it is idle."""
    cycle = Lifecycle()
    clock.run(told(cycle, signal.SIGINT, in_flight=1))
    assert ended == [(signal.SIGTERM, 0)]
    assert cycle.is_restarting is True
    assert cycle.is_stopping is False


def test_a_restart_is_begun_once_and_not_when_it_stops(ended: list[tuple[int, float]]) -> None:
    async def restart_twice(cycle: Lifecycle) -> None:
        with cycle.signals():
            cycle.restart()
            cycle.restart()

    clock.run(restart_twice(cycle := Lifecycle()))
    assert ended == [(signal.SIGTERM, 0)]
    assert cycle.is_restarting is True
    stopping = Lifecycle()
    stopping.is_stopping = True
    clock.run(restart_twice(stopping))
    assert len(ended) == 1
    assert not stopping.is_restarting


def test_without_a_server_that_takes_signals_there_is_nobody_to_be_told() -> None:
    cycle = Lifecycle()
    cycle.restart()
    assert cycle.is_restarting
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    clock.run(told(Lifecycle(), signal.SIGTERM))
    assert signal.signal(signal.SIGTERM, before) == signal.SIG_IGN


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    errors: list[Exception] = []

    async def nothing() -> None:
        with Lifecycle().signals():
            assert signal.getsignal(signal.SIGTERM) is before

    def work() -> None:
        try:
            asyncio.run(nothing())
        except Exception as error:
            errors.append(error)

    (thread := threading.Thread(target=work)).start()
    thread.join()
    assert errors == []


# the middleware


async def asked(
    app: ASGIApp, headers: Sequence[tuple[bytes, bytes]] = (), pieces: Sequence[bytes] = (b"",), *, ends: bool = True
) -> list[Message]:
    """What is answered to a request with this body; one that never ends goes silent."""
    left, answers = list(pieces), list[Message]()

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(1000)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or not ends}

    async def send(message: Message) -> None:
        answers.append(message)

    await app({"type": "http", "headers": list(headers)}, receive, send)
    return answers


LENGTH: Headers = [(b"host", b"x"), (b"content-length", b"4")]
CHUNKED: Headers = [(b"transfer-encoding", b"chunked")]
NO_BODY: Headers = [(b"content-length", b"0"), (b"host", b"x")]


def answering(cycle: Lifecycle, then: str = "", *, reads: int = 0) -> ASGIApp:
    """An app that reads so many pieces, while which the process begins to end, and answers."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert cycle.in_flight == 1
        for _ in range(reads):
            await receive()
        if then:
            setattr(cycle, then, True)
        await send({"type": "http.response.start", "headers": [(b"connection", b"keep-alive"), (b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"!"})

    return LifecycleMiddleware(app, cycle)


def headers(answers: list[Message]) -> Headers:
    assert answers[1:] == [{"type": "http.response.body", "body": b"!"}]
    sent: Headers = answers[0]["headers"]
    return sent


def test_as_long_as_it_runs_a_connection_stays_open() -> None:
    cycle = Lifecycle()
    assert headers(clock.run(asked(answering(cycle)))) == [(b"connection", b"keep-alive"), (b"a", b"b")]
    assert cycle.in_flight == 0


@pytest.mark.parametrize("then", ["is_stopping", "is_restarting"])
@pytest.mark.parametrize(
    ("of_request", "pieces", "reads", "closes"),
    [
        ([], [b""], 0, True),
        (NO_BODY, [b""], 0, True),
        (LENGTH, [b"abcd"], 0, False),
        (LENGTH, [b"abcd"], 1, True),
        (LENGTH, [b"ab", b"cd"], 1, False),
        (CHUNKED, [b"ab", b"cd"], 1, False),
        (CHUNKED, [b"ab", b"cd"], 2, True),
    ],
)
def test_when_it_is_about_to_end_a_reply_to_a_request_that_was_read_closes(
    then: str, of_request: Headers, pieces: list[bytes], reads: int, closes: bool
) -> None:
    sent = headers(clock.run(asked(answering(Lifecycle(), then, reads=reads), of_request, pieces)))
    assert sent == ([(b"a", b"b"), CLOSE] if closes else [(b"connection", b"keep-alive"), (b"a", b"b")])


def test_a_reply_without_headers_closes_too() -> None:
    cycle = Lifecycle()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        cycle.is_restarting = True
        await send({"type": "http.response.start", "status": 200})

    (start,) = clock.run(asked(LifecycleMiddleware(app, cycle)))
    assert start["headers"] == [CLOSE]


def test_a_request_that_fails_is_in_flight_no_more() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError

    cycle = Lifecycle()
    cycle.in_flight = 4
    with pytest.raises(ValueError):  # noqa: PT011
        clock.run(asked(LifecycleMiddleware(fail, cycle)))
    assert cycle.in_flight == 4


async def refused(of_request: Headers, pieces: Sequence[bytes] = (b"",), *, ends: bool = True) -> tuple[float, Headers]:
    """When, and with which headers, a request is that comes when it stops."""
    cycle = Lifecycle()
    cycle.is_stopping = True
    start, body = await asked(LifecycleMiddleware(answering(cycle), cycle), of_request, pieces, ends=ends)
    assert start["status"] == 503
    assert json.loads(body["body"]) == {"result": [], "msg": "the service is stopping"}
    assert cycle.in_flight == 0
    return clock.now(), start["headers"]


def test_who_comes_when_it_stops_is_told_to_come_again() -> None:
    for of_request, pieces in (([], [b""]), (LENGTH, [b"ab", b"cd"]), (CHUNKED, [b"ab", b"cd"])):
        when, sent = clock.run(refused(of_request, pieces))
        assert when == 0
        assert CLOSE in sent
        assert (b"retry-after", b"10") in sent


def test_whose_body_does_not_end_is_told_after_two_seconds() -> None:
    when, sent = clock.run(refused(LENGTH, [b"ab"], ends=False))
    assert when == 2
    assert CLOSE not in sent


def test_who_has_hung_up_is_not_waited_for() -> None:
    async def gone() -> None:
        cycle, answers = Lifecycle(), list[Message]()
        cycle.is_stopping = True

        async def receive() -> Message:
            assert not answers
            await asyncio.sleep(0.1)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            answers.append(message)

        scope = {"type": "http", "headers": LENGTH}
        await LifecycleMiddleware(answering(cycle), cycle)(scope, receive, send)
        assert (clock.now(), answers[0]["status"]) == (0.1, 503)

    clock.run(gone())


def test_what_is_no_request_is_not_counted() -> None:
    cycle, scopes = Lifecycle(), list[Scope]()
    cycle.is_stopping = True

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert cycle.in_flight == 0
        scopes.append(scope)
        await send(await receive())

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        scopes.append(message)

    clock.run(LifecycleMiddleware(app, cycle)({"type": "lifespan"}, receive, send))
    assert [scope["type"] for scope in scopes] == ["lifespan", "lifespan.startup"]


# the connection


class Transport(asyncio.Transport):
    """Notes when it is closed."""

    closed: float | None = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.closed is not None

    def close(self) -> None:
        assert not self.is_closing()
        self.closed = clock.now()


async def shut_down(transport: Transport) -> None:
    config = uvicorn.Config(lambda: None, log_config=None)
    config.load()
    protocol = LingeringH11Protocol(config, ServerState(), {})
    protocol.connection_made(transport)
    protocol.shutdown()
    await asyncio.sleep(10)


def test_an_idle_connection_stays_open_for_a_moment_when_the_process_ends() -> None:
    clock.run(shut_down(transport := Transport()))
    assert transport.closed == LINGER_SECONDS == 1


def test_a_connection_that_is_closing_is_left_alone() -> None:
    transport = Transport()
    transport.closed = -1
    clock.run(shut_down(transport))
    assert transport.closed == -1
