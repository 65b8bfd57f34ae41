# SPDX-License-Identifier: AGPL-3.0-only
"""Clients that keep a service busy, know what each answer must be, and never send a request twice."""

import contextlib
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from typing import Any

from demo.pictures import colour_photo, group_photo, text_page
from photos import jpeg
from service import KEY
from trust.tally import count

_BOUNDARY = "traffic"


@dataclass(frozen=True)
class Request:
    """One that may be sent: what it is, and what it must be answered."""

    route: str
    body: bytes
    content_type: str
    answer: Any = None

    def send(self, connection: HTTPConnection) -> tuple[int, Any, str | None]:
        """Status, body and Retry-After. Raises OSError, HTTPException where the connection breaks."""
        connection.request("POST", self.route, self.body, {"api-key": KEY, "content-type": self.content_type})
        with connection.getresponse() as reply:
            return reply.status, json.loads(reply.read()), reply.getheader("retry-after")


def form(photo: bytes) -> tuple[bytes, str]:
    """A photo as clients send it: body and content type."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'.encode()
    return head + photo + f"\r\n--{_BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={_BOUNDARY}"


def mixed(size: tuple[int, int] = (320, 240), each: int = 4) -> list[Request]:
    """Requests for every route, each with an answer of its own."""
    asked: list[Request] = []
    for i, colour in enumerate(["red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink"][:each]):
        page = text_page([f"Number {4701 + 13 * i}"], (max(size[0], 320), max(size[1] // 2, 120)))[0]
        asked += [
            Request("/clip/img", *form(jpeg(colour_photo(colour, size)))),
            Request("/ocr", *form(jpeg(page))),
            Request("/represent", *form(jpeg(group_photo((640, 480), range(i % 3 + 1), seed=i)[0]))),
            Request("/clip/txt", json.dumps({"text": f"{colour} {i}"}).encode(), "application/json"),
        ]
    return asked


def answered(url: str, requests: Sequence[Request]) -> list[Request]:
    """The requests with the answers that they get now, from a service that nothing disturbs."""
    done = []
    with contextlib.closing(_connection(url)) as connection:
        for request in requests:
            status, answer, _ = request.send(connection)
            assert (status, "msg" in answer) == (200, False), answer
            done.append(replace(request, answer=answer))
    assert len({json.dumps(request.answer) for request in done}) == len(done), "two answers are the same"
    return done


@dataclass
class Traffic:
    """What came of it. lost: connections that broke under a request. wrong: answers of others, or no answers."""

    sent: int = 0
    right: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


@contextlib.contextmanager
def running_traffic(
    url: str, requests: Sequence[Request], clients: int = 6, *, may_fail: Sequence[int] = (503,), cut: int = 0
) -> Iterator[Traffic]:
    """Sends the requests from so many clients, over and over, until the context ends.

    may_fail: statuses that count as an answer if they come with Retry-After; all others than 200 are wrong.
    cut: how many may break off because their process is killed.
    """
    seen, lock, end = Traffic(), threading.Lock(), threading.Event()

    def client(number: int) -> None:
        connection, turns = _connection(url), itertools.islice(itertools.cycle(requests), number, None)
        while not end.is_set():
            request, began = next(turns), time.monotonic()
            try:
                status, answer, retry_after = request.send(connection)
            except (OSError, HTTPException) as error:
                connection.close()
                status, answer, retry_after = 0, f"{type(error).__name__} {error}", None
            with lock:
                seen.sent += 1
                if status:
                    seen.statuses[status] += 1
                    seen.slowest = max(seen.slowest, time.monotonic() - began)
                else:
                    seen.lost.append(f"{request.route}: {answer}")
                if status == 200 and alike(answer, request.answer):
                    seen.right += 1
                elif status and (status not in may_fail or retry_after is None):
                    seen.wrong.append(f"{request.route} {status}: {str(answer)[:200]}")
            if status != 200:
                end.wait(0.05)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        end.set()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads), "a request was never answered"
        count("requests sent", seen.sent)
        count("requests answered", seen.right)
        count("requests answered 503 with Retry-After", seen.statuses[503])
        count("requests cut off by the end of a killed process", cut_off := min(len(seen.lost), cut))
        count("requests lost", len(seen.lost) - cut_off)
        count("answers wrong", len(seen.wrong))


def alike(answer: Any, expected: Any) -> bool:
    """The same but for the last digits, which differ by the number of threads that computed them."""
    if isinstance(answer, dict) and isinstance(expected, dict):
        return answer.keys() == expected.keys() and all(alike(answer[key], expected[key]) for key in answer)
    if isinstance(answer, list) and isinstance(expected, list):
        return len(answer) == len(expected) and all(map(alike, answer, expected))
    if answer == expected:
        return True
    try:
        return abs(float(answer) - float(expected)) <= 2e-3 * max(1.0, abs(float(expected)))
    except (TypeError, ValueError):
        return False


def _connection(url: str) -> HTTPConnection:
    host, _, port = url.removeprefix("http://").partition(":")
    return HTTPConnection(host, int(port), timeout=100)
