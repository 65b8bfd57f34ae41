# SPDX-License-Identifier: AGPL-3.0-only
"""A client that costs next to nothing: requests made once as bytes, sent over connections that stay open."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, Self

from mt_photos_ml.settings import DEFAULT_KEY

_BOUNDARY = "bench-bench-bench"
_PATIENCE = 120.0


def _post(route: str, kind: str, body: bytes) -> bytes:
    head = f"POST {route} HTTP/1.1\r\nHost: bench\r\napi-key: {DEFAULT_KEY}\r\nContent-Type: {kind}\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


CHECK = _post("/check", "text/plain", b"")


def photo_request(route: str, photo: bytes) -> bytes:
    """POST of a form with the photo in the field `file`."""
    disposition = 'Content-Disposition: form-data; name="file"; filename="photo"'
    head = f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
    body = head.encode() + photo + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return _post(route, f"multipart/form-data; boundary={_BOUNDARY}", body)


def text_request(text: str) -> bytes:
    """POST /clip/txt."""
    return _post("/clip/txt", "application/json", json.dumps({"text": text}).encode())


class Client:
    """One connection to a service on this machine. Not for several threads at once."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> bytes:
        """The body of the reply. Raises RuntimeError where it is not 200, OSError or HTTPException without one."""
        self._socket.sendall(request)
        reply = HTTPResponse(self._socket, method="POST")
        reply.begin()
        body = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{request[:40]!r} was answered {reply.status}: {body[:300]!r}")
        return body

    def result(self, request: bytes) -> Any:
        """What the reply's `result` holds. Raises RuntimeError where the photo could not be used."""
        reply = json.loads(self.ask(request))
        if "msg" in reply:
            raise RuntimeError(f"{request[:40]!r} was answered: {reply['msg']}")
        return reply["result"]


@dataclass(frozen=True)
class Crowd:
    """How many clients at once fared. seconds: in all. waits: milliseconds of each request."""

    seconds: float
    waits: list[float]

    @property
    def a_second(self) -> float:
        return len(self.waits) / self.seconds


def at_once(port: int, requests: Sequence[bytes], number: int) -> Crowd:
    """All the requests by so many clients, each sending its next one as soon as it has the reply to the last."""
    left, waits, ready = iter(requests), [], threading.Barrier(number + 1)

    def client() -> None:
        with Client(port) as client:
            ready.wait(_PATIENCE)
            while (request := next(left, None)) is not None:
                started = time.perf_counter()
                client.ask(request)
                waits.append((time.perf_counter() - started) * 1000)

    with ThreadPoolExecutor(number) as pool:
        clients = [pool.submit(client) for _ in range(number)]
        ready.wait(_PATIENCE)
        started = time.perf_counter()
        for each in clients:
            each.result()
    return Crowd(time.perf_counter() - started, waits)


@contextmanager
def under(port: int, requests: Sequence[bytes]) -> Iterator[None]:
    """A client for each of the requests sends it over and over while the context lasts."""
    ended = threading.Event()

    def client(request: bytes) -> None:
        with Client(port) as client:
            while not ended.is_set():
                client.ask(request)

    with ThreadPoolExecutor(len(requests)) as pool:
        clients = [pool.submit(client, request) for request in requests]
        try:
            yield
        finally:
            ended.set()
    for each in clients:
        each.result()
