# SPDX-License-Identifier: AGPL-3.0-only
"""Clients on a bare socket, which send what no HTTP library would."""

import contextlib
import socket
import time
from collections.abc import Iterator

from service import KEY
from trust.tally import count
from trust.traffic import form


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def upload_head(route: str, length: int | None, content_type: str = form(b"")[1], more: str = "") -> bytes:
    """The head of an upload with the right key; chunked if there is no length."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST {route} HTTP/1.1\r\nHost: x\r\napi-key: {KEY}\r\nContent-Type: {content_type}\r\n{size}\r\n{more}\r\n"
    ).encode()


@contextlib.contextmanager
def stalled(
    url: str, route: str = "/ocr", photo: bytes = bytes(5_000_000), sent: int | None = 100
) -> Iterator[socket.socket]:
    """An upload that stalls after so many bytes, or after all of them if `sent` is None."""
    count("faults injected")
    body, _ = form(photo)
    with connect(url) as connection:
        connection.sendall(upload_head(route, len(body)) + body[:sent])
        yield connection


def answer_to(url: str, sent: bytes, seconds: float = 20) -> bytes:
    """What is received until the connection is closed, quiet for half a second, or the time is over."""
    count("inputs tried")
    with connect(url) as connection:
        with contextlib.suppress(OSError):  # it may be refused before all is sent
            connection.sendall(sent)
        return received(connection, seconds)


def received(connection: socket.socket, seconds: float) -> bytes:
    answer, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        connection.settimeout(0.5 if answer else max(deadline - time.monotonic(), 0.01))
        try:
            piece = connection.recv(65536)
        except OSError:
            break
        if not piece:
            break
        answer += piece
    return answer


def status_of(answer: bytes) -> int:
    """The status of a reply; 0 if there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
