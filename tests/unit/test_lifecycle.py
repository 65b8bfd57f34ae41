# SPDX-License-Identifier: AGPL-3.0-only
"""How a process ends: which requests it waits for and what it answers meanwhile. test_serve.py ends real processes."""

import asyncio
import json
import signal
from collections.abc import Iterator, Sequence
from types import FrameType

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import clock
from mt_photos_ml.api.middleware import lifecycle
from mt_photos_ml.api.middleware.lifecycle import Lifecycle, LifecycleMiddleware

pytestmark = pytest.mark.anyio
Headers = list[tuple[bytes, bytes]]
CLOSE = (b"connection", b"close")
LENGTH: Headers = [(b"host", b"x"), (b"content-length", b"4")]
CHUNKED: Headers = [(b"transfer-encoding", b"chunked")]
NO_BODY: Headers = [(b"content-length", b"0"), (b"host", b"x")]


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """The signals that reach the server's own handlers, which are set before ours."""
    calls: list[int] = []

    def server(number: int, frame: FrameType | None) -> None:
        calls.append(number)

    before = {number: signal.signal(number, server) for number in (signal.SIGTERM, signal.SIGINT)}
    yield calls
    for number, handler in before.items():
        assert signal.signal(number, handler) is server, "our handler was not removed"


@pytest.mark.parametrize("answered", [True, False])
async def test_a_stop_waits_for_requests_in_flight_but_not_for_ever(
    ended: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answered: bool
) -> None:
    monkeypatch.setattr(lifecycle, "FINISH_SECONDS", 60 if answered else 0.5)
    cycle = Lifecycle()
    cycle.in_flight = 3
    with caplog.at_level("INFO"), cycle.signals():
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert (cycle.is_stopping, cycle.is_restarting, ended) == (True, False, [])
        cycle.in_flight = 0 if answered else 1
        cycle.restart()  # a stop has priority
        async with asyncio.timeout(30):
            while not ended:
                await asyncio.sleep(0.01)
    assert (ended, cycle.is_restarting) == ([signal.SIGTERM], False)
    assert "stopping once 3 requests are answered" in caplog.text


async def test_sigint_to_a_worker_restarts_it_at_once(ended: list[int]) -> None:
    """Upstream's app sends SIGINT to its own process when it is idle."""
    cycle = Lifecycle()
    cycle.in_flight = 1
    with cycle.signals():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            assert (ended, cycle.is_restarting, cycle.is_stopping) == ([signal.SIGTERM], True, False)


async def asked(
    app: ASGIApp, headers: Headers, pieces: Sequence[bytes] = (b"",), end: str = "http.request"
) -> list[Message]:
    """The reply to a request with this body. end: the message after it; if empty, none comes."""
    left, answers = list(pieces), list[Message]()

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or end != "http.request"}
        await asyncio.sleep(0 if end else 60)
        return {"type": end}

    async def send(message: Message) -> None:
        answers.append(message)

    await app({"type": "http", "headers": headers}, receive, send)
    return answers


def answering(cycle: Lifecycle, then: str = "", *, reads: int = 0) -> ASGIApp:
    """An app that reads so many pieces, sets the lifecycle's flag `then`, and answers."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert cycle.in_flight == 1
        for _ in range(reads):
            await receive()
        if then:
            setattr(cycle, then, True)
        await send({"type": "http.response.start", "headers": [(b"connection", b"keep-alive"), (b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"!"})

    return LifecycleMiddleware(app, cycle)


@pytest.mark.parametrize("then", ["", "is_closed", "is_restarting"])
@pytest.mark.parametrize(
    ("headers", "pieces", "reads", "is_read"),
    [
        ([], [b""], 0, True),
        (NO_BODY, [b""], 0, True),
        (LENGTH, [b"abcd"], 0, False),
        (LENGTH, [b"abcd"], 1, True),
        (CHUNKED, [b"ab", b"cd"], 1, False),
        (CHUNKED, [b"ab", b"cd"], 2, True),
    ],
)
async def test_a_reply_closes_its_connection_if_the_process_ends_and_the_request_was_read(
    then: str, headers: Headers, pieces: list[bytes], reads: int, is_read: bool
) -> None:
    cycle = Lifecycle()
    start, body = await asked(answering(cycle, then, reads=reads), headers, pieces)
    closed, kept = [(b"a", b"b"), CLOSE], [(b"connection", b"keep-alive"), (b"a", b"b")]
    assert start["headers"] == (closed if then and is_read else kept)
    assert (body["body"], cycle.in_flight) == (b"!", 0)


async def test_a_request_that_failed_is_no_longer_in_flight() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError

    cycle = Lifecycle()
    with pytest.raises(OSError):  # noqa: PT011
        await asked(LifecycleMiddleware(fail, cycle), [])
    assert cycle.in_flight == 0


@pytest.mark.parametrize(
    ("headers", "pieces", "end", "seconds", "closes"),
    [
        ([], [b""], "http.request", 0, True),
        (CHUNKED, [b"ab", b"cd"], "http.request", 1, True),
        (LENGTH, [b"ab"], "", 3, False),
        (LENGTH, [b"ab"], "http.disconnect", 1, True),
    ],
)
def test_a_stopping_service_reads_a_new_request_for_two_seconds_and_refuses_it(
    headers: Headers, pieces: list[bytes], end: str, seconds: float, closes: bool
) -> None:
    cycle = Lifecycle()
    cycle.is_closed = True

    async def scene() -> tuple[list[Message], float]:
        return await asked(answering(cycle), headers, pieces, end), clock.now()

    (start, body), took = clock.run(scene())
    assert took == seconds
    assert (start["status"], json.loads(body["body"])["msg"]) == (503, "the service is stopping")
    assert (b"retry-after", b"10") in start["headers"]
    assert (CLOSE in start["headers"], cycle.in_flight) == (closes, 0)
