# SPDX-License-Identifier: AGPL-3.0-only
"""A client that costs next to nothing: requests made once as bytes, sent over connections that stay open."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPResponse
from typing import Any, Self

from bench.measure import milliseconds

KEY = "the key of the benchmark"
_TIMEOUT_SECONDS = 120.0


def _post(route: str, kind: str, body: bytes) -> bytes:
    head = f"POST {route} HTTP/1.1\r\nHost: bench\r\napi-key: {KEY}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


CHECK = _post("/check", "text/plain", b"")


def photo_request(route: str, photo: bytes) -> bytes:
    """POST of a form with the photo in the field `file`."""
    part = 'Content-Disposition: form-data; name="file"; filename="photo"\r\nContent-Type: application/octet-stream'
    body = f"--bench-bench\r\n{part}\r\n\r\n".encode() + photo + b"\r\n--bench-bench--\r\n"
    return _post(route, "multipart/form-data; boundary=bench-bench", body)


def text_request(text: str) -> bytes:
    """POST /clip/txt."""
    return _post("/clip/txt", "application/json", json.dumps({"text": text}).encode())


class Client:
    """One connection to a service on this machine. Not for several threads at once."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> bytes:
        """The body of the reply. Raises RuntimeError if it is not 200, OSError or HTTPException without a reply."""
        self._socket.sendall(request)
        reply = HTTPResponse(self._socket, method="POST")
        reply.begin()
        body = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{request[:40]!r} was answered {reply.status}: {body[:300]!r}")
        return body

    def result(self, request: bytes) -> Any:
        """The reply's `result`. Raises RuntimeError if the photo could not be used."""
        reply = json.loads(self.ask(request))
        if "msg" in reply:
            raise RuntimeError(f"{request[:40]!r} was answered: {reply['msg']}")
        return reply["result"]


def send(port: int, requests: Sequence[bytes], clients: int = 1) -> tuple[float, list[float]]:
    """Requests a second, and the milliseconds of each: every client sends its next one once it has a reply."""
    waits: list[float] = []
    left, ready = iter(requests), threading.Barrier(clients + 1)

    def work() -> None:
        with Client(port) as client:
            ready.wait(_TIMEOUT_SECONDS)
            while (request := next(left, None)) is not None:
                waits.append(milliseconds(partial(client.ask, request)))

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(work) for _ in range(clients)]
        ready.wait(_TIMEOUT_SECONDS)
        taken = milliseconds(lambda: [each.result() for each in running])
    return len(waits) * 1000 / taken, waits


@contextmanager
def under_load(port: int, requests: Sequence[bytes]) -> Iterator[None]:
    """A client for each of the requests sends it over and over until the context ends."""
    ended = threading.Event()

    def work(request: bytes) -> None:
        with Client(port) as client:
            while not ended.is_set():
                client.ask(request)

    with ThreadPoolExecutor(len(requests)) as pool:
        running = [pool.submit(work, request) for request in requests]
        try:
            yield
        finally:
            ended.set()
    for each in running:
        each.result()
