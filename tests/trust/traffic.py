# SPDX-License-Identifier: AGPL-3.0-only
"""Clients that keep a service busy, check every reply, and never retry a request."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np

from demo.pictures import colour_photo, group_photo, text_page
from photos import jpeg
from service import KEY, ON_DEVICE
from trust.tally import count

_BOUNDARY = "traffic"
_VECTOR = 512  # numbers
_NEAR = dict.fromkeys(("x", "y", "w", "h"), 2.0) | {"width": 4.0, "height": 4.0}  # pixels; a width has two edges


@dataclass(frozen=True)
class Request:
    """A request and the expected answer."""

    route: str
    body: bytes
    content_type: str
    answer: Any = None

    def send(self, connection: HTTPConnection) -> tuple[int, Any, str | None]:
        """Sends it and returns status, body and Retry-After. Raises OSError, HTTPException if the connection breaks."""
        connection.request("POST", self.route, self.body, {"api-key": KEY, "content-type": self.content_type})
        with connection.getresponse() as reply:
            return reply.status, json.loads(reply.read()), reply.getheader("retry-after")


def form(photo: bytes) -> tuple[bytes, str]:
    """Body and content type of a form with the photo."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'.encode()
    return head + photo + f"\r\n--{_BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={_BOUNDARY}"


def mixed(each: int) -> list[Request]:
    """Requests for every route, each with its own answer."""
    asked: list[Request] = []
    for i, colour in enumerate(["red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink"][:each]):
        page = text_page([f"Number {4701 + 13 * i}"], (320, 120))[0]
        asked += [
            Request("/clip/img", *form(jpeg(colour_photo(colour, (320, 240))))),
            Request("/ocr", *form(jpeg(page))),
            Request("/represent", *form(jpeg(group_photo((640, 480), range(i % 3 + 1), seed=i)[0]))),
            Request("/clip/txt", json.dumps({"text": f"{colour} {i}"}).encode(), "application/json"),
        ]
    return asked


def answered(url: str, requests: Sequence[Request]) -> list[Request]:
    """Sends the requests one by one and returns them with their answers, each of which must be different."""
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
    """Counts the answers. busy: 503 with Retry-After. lost: connections that broke off. wrong: other answers
    or statuses. streak: right answers in a row. cut: how many may be lost."""

    sent: int = 0
    right: int = 0
    streak: int = 0
    busy: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    cut: int = 0

    def check(self) -> None:
        """Asserts that no answer was wrong, and that only requests to a killed process were lost."""
        assert self.wrong == []
        assert len(self.lost) <= self.cut, self.lost
        assert self.right > 0


@contextlib.contextmanager
def running_traffic(url: str, requests: Sequence[Request], clients: int = 6, *, cut: int = 0) -> Iterator[Traffic]:
    """Sends the requests repeatedly from so many clients until the context ends.

    503 with Retry-After counts as an answer. cut: how many may be lost because a process is killed.
    """
    seen, lock, end = Traffic(cut=cut), threading.Lock(), threading.Event()

    def client(number: int) -> None:
        connection, turns = _connection(url), itertools.islice(itertools.cycle(requests), number, None)
        while not end.is_set():
            request, began = next(turns), time.monotonic()
            try:
                status, answer, retry_after = request.send(connection)
            except (OSError, HTTPException) as error:
                connection.close()
                status, answer, retry_after = 0, f"{type(error).__name__} {error}", None
            is_right = status == 200 and alike(answer, request.answer)
            with lock:
                seen.sent += 1
                seen.streak = seen.streak + 1 if is_right else 0
                seen.slowest = max(seen.slowest, time.monotonic() - began)
                if is_right:
                    seen.right += 1
                elif not status:
                    seen.lost.append(f"{request.route}: {answer}")
                elif status == 503 and int(retry_after or 0) > 0 and answer["msg"]:
                    seen.busy += 1
                else:
                    seen.wrong.append(f"{request.route} {status}: {str(answer)[:200]}")
            if status != 200:
                end.wait(0.05)
        connection.close()

    with ThreadPoolExecutor(clients) as threads:
        working = [threads.submit(client, number) for number in range(clients)]
        try:
            yield seen
        finally:
            end.set()
            for each in working:
                each.result()
            count("requests sent", seen.sent)
            count("requests answered", seen.right)
            count("requests answered 503 with Retry-After", seen.busy)
            count("requests cut off by the end of a killed process", cut_off := min(len(seen.lost), cut))
            count("requests lost", len(seen.lost) - cut_off)
            count("answers wrong", len(seen.wrong))


def same(found: Sequence[Request], expected: Sequence[Request]) -> bool:
    """Whether the answers are equal; on a device only alike, because the processor answers until it is ready."""
    answers, others = ([request.answer for request in requests] for requests in (found, expected))
    return alike(answers, others) if ON_DEVICE else answers == others


def alike(answer: Any, expected: Any, name: str = "") -> bool:
    """Whether answers are equal except for the last digits, which depend on the number of threads. On a device, texts
    must be equal, and boxes and vectors as near as databases need. name: the key of this value."""
    if isinstance(answer, dict) and isinstance(expected, dict):
        return answer.keys() == expected.keys() and all(alike(answer[key], expected[key], key) for key in answer)
    if isinstance(answer, list) and isinstance(expected, list):
        if ON_DEVICE and len(answer) == len(expected) >= _VECTOR:
            a, b = np.array(answer, float), np.array(expected, float)
            return bool(a @ b >= (0.99 if name == "embedding" else 0.9999) * np.linalg.norm(a) * np.linalg.norm(b))
        return len(answer) == len(expected) and all(alike(*each, name) for each in zip(answer, expected, strict=True))
    if answer == expected:
        return True
    try:
        difference, size = abs(float(answer) - float(expected)), max(1.0, abs(float(expected)))
    except (TypeError, ValueError):
        return False
    return difference <= (_NEAR.get(name, 0.02) if ON_DEVICE else 2e-3 * size)


def _connection(url: str) -> HTTPConnection:
    host, _, port = url.removeprefix("http://").partition(":")
    return HTTPConnection(host, int(port), timeout=100)
