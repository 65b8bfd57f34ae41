# SPDX-License-Identifier: AGPL-3.0-only
"""A client of the API with types, for scripts and for the commands check, ocr, clip and faces."""

import json
import secrets
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the photo as people see it."""


class ApiError(RuntimeError):
    """The service did not do it. status: of HTTP, 0 where it was not reached. retry_after: seconds, None for never."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True)
class Line:
    """A line of text. score: 0 to 1."""

    text: str
    score: float
    box: Box


@dataclass(frozen=True)
class Face:
    """A face. score: 0 to 1. embedding: of unit length."""

    score: float
    box: Box
    embedding: list[float]


@dataclass(frozen=True)
class Client:
    """Of the service at an address such as http://192.168.1.2:8060. Methods raise ApiError."""

    url: str
    key: str
    timeout: float = 120.0

    @classmethod
    def at(cls, url: str, key: str) -> Self:
        return cls(url.rstrip("/"), key)

    def check(self) -> dict[str, Any]:
        """What the service is and how it is set."""
        return self._ask("/check", b"", "application/octet-stream")

    def ocr(self, photo: bytes) -> list[Line]:
        """The text in a photo, in reading order."""
        found = self._photo("/ocr", photo)["result"]
        return [
            Line(text, float(score), (float(b["x"]), float(b["y"]), float(b["width"]), float(b["height"])))
            for text, score, b in zip(found["texts"], found["scores"], found["boxes"], strict=True)
        ]

    def clip(self, photo: bytes) -> list[float]:
        """The vector of a photo, of unit length."""
        return [float(number) for number in self._photo("/clip/img", photo)["result"]]

    def clip_text(self, text: str) -> list[float]:
        """The vector of a text; the product with that of a photo says how near they are."""
        body = json.dumps({"text": text}).encode()
        return [float(number) for number in self._ask("/clip/txt", body, "application/json")["result"]]

    def faces(self, photo: bytes) -> list[Face]:
        """The faces in a photo, the surest first."""
        return [
            Face(face["face_confidence"], (at["x"], at["y"], at["w"], at["h"]), face["embedding"])
            for face in self._photo("/represent", photo)["result"]
            if (at := face["facial_area"])
        ]

    def _photo(self, route: str, photo: bytes) -> dict[str, Any]:
        boundary = secrets.token_hex(16)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="photo"\r\n\r\n'.encode()
        body = head + photo + f"\r\n--{boundary}--\r\n".encode()
        answer = self._ask(route, body, f"multipart/form-data; boundary={boundary}")
        if "msg" in answer:
            raise ApiError(200, answer["msg"])
        return answer

    def _ask(self, route: str, body: bytes, kind: str) -> dict[str, Any]:
        headers = {"api-key": self.key, "content-type": kind}
        request = urllib.request.Request(self.url + route, body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                answer: dict[str, Any] = json.loads(reply.read())
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, _told(error.read()), _seconds(error.headers.get("retry-after"))) from None
        except (OSError, ValueError) as error:
            raise ApiError(0, f"{self.url} does not answer: {getattr(error, 'reason', error)}") from None
        return answer


def read(path: Path) -> bytes:
    """A photo's bytes. Raises ApiError where the file can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ApiError(0, f"{path}: {error.strerror}") from None


def _told(body: bytes) -> str:
    try:
        answer = json.loads(body)
        return str(answer.get("msg") or answer.get("detail"))
    except (ValueError, AttributeError):
        return body[:200].decode(errors="replace")


def _seconds(header: str | None) -> int | None:
    return int(header) if header and header.isdecimal() else None
