# SPDX-License-Identifier: AGPL-3.0-only
"""A client that costs next to nothing: requests made once as bytes, sent over connections that stay open."""

import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPResponse
from itertools import cycle, takewhile
from typing import Any, Self

from bench.measure import milliseconds

KEY = "the key of the benchmark"
_TIMEOUT_SECONDS = 120.0
_FORM = 'Content-Disposition: form-data; name="file"; filename="photo"\r\nContent-Type: application/octet-stream'


def _post(route: str, kind: str, body: bytes) -> bytes:
    head = f"POST {route} HTTP/1.1\r\nHost: bench\r\napi-key: {KEY}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


CHECK = _post("/check", "text/plain", b"")


def photo_request(route: str, photo: bytes) -> bytes:
    """POST of a form with the photo in the field `file`."""
    body = f"--bench-bench\r\n{_FORM}\r\n\r\n".encode() + photo + b"\r\n--bench-bench--\r\n"
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


def send(port: int, requests: Iterable[bytes], clients: int = 1) -> tuple[float, list[float]]:
    """Requests a second, and the milliseconds of each: every client sends its next one once it has a reply."""
    left = iter(requests)

    def work(client: Client) -> list[float]:
        with client:
            return [milliseconds(partial(client.ask, request)) for request in left]

    connected = [Client(port) for _ in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        waits = [wait for each in pool.map(work, connected) for wait in each]
        return len(waits) / (time.perf_counter() - started), waits


@contextmanager
def under_load(port: int, requests: Sequence[bytes]) -> Iterator[None]:
    """As many clients as requests send them over and over until the context ends."""
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        endless = takewhile(lambda _: not ended.is_set(), cycle(requests))
        sending = pool.submit(send, port, endless, len(requests))
        try:
            yield
        finally:
            ended.set()
        sending.result()
