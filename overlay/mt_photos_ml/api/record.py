# SPDX-License-Identifier: AGPL-3.0-only
"""What is known of a request while it is answered: for its line in the log, the metrics, and the client."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter

from starlette.types import Scope

_LONGEST = 120  # characters of why a request failed
_ID = re.compile(rb"[\w.:-]{1,64}")


@dataclass
class RequestRecord:
    """photo: its kind and size. waited_ms: for upload, model and worker. Times are in milliseconds, None where there
    was nothing of the kind."""

    id: str
    method: str
    path: str
    status: int = 500  # what the framework answers to an error that nobody expected
    photo: str | None = None
    megabytes: float | None = None
    waited_ms: float | None = None
    model_ms: float | None = None
    decode_ms: float | None = None
    note: str | None = None
    error: str | None = None
    reason: str | None = None
    total_ms: float = 0.0
    started: float = field(default_factory=perf_counter)

    def elapsed_ms(self) -> float:
        return (perf_counter() - self.started) * 1000

    def fail(self, error: Exception) -> None:
        """Why the request failed: in words, and the kind of error by which it is counted."""
        said = " ".join(str(error).split()) or type(error).__name__
        said = said if len(said) <= _LONGEST else f"{said[: _LONGEST - 1]}…"
        self.error = "".join(letter if letter.isprintable() else _escaped(letter) for letter in said)
        self.reason = type(error).__name__

    def line(self) -> str:
        """For a person."""
        path = _escaped(self.path[:200])  # a line break would forge a line of the log
        return f"{self.method} {path} {self.status} {', '.join(self._fields())}"

    def _fields(self) -> Iterator[str]:
        if self.photo:
            yield self.photo
        if self.megabytes is not None:
            yield f"{self.megabytes:.1f} MB"
        if self.note:
            yield self.note
        for name, value in (("wait", self.waited_ms), ("model", self.model_ms), ("decode", self.decode_ms)):
            if value is not None:
                yield f"{name} {value:.0f} ms"
        if self.error:
            yield self.error
        yield f"total {self.total_ms:.0f} ms"
        yield f"id {self.id}"

    def timing(self) -> str:
        """For the header Server-Timing (W3C), of which browsers make a page's own figures."""
        steps = (("wait", self.waited_ms), ("decode", self.decode_ms), ("model", self.model_ms))
        parts = [f"{name};dur={value:.1f}" for name, value in steps if value is not None]
        return ", ".join([*parts, f"total;dur={self.elapsed_ms():.1f}"])


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode()


def record_of(scope: Scope) -> RequestRecord:
    """The record of this request; AccessLogMiddleware makes it."""
    record: RequestRecord = scope["mt_photos_ml.record"]
    return record


def begin(scope: Scope) -> RequestRecord:
    """A new record, under the client's own X-Request-ID where it sends one that fits into a line."""
    own = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    known_as = own.decode() if _ID.fullmatch(own) else secrets.token_hex(6)
    record = scope["mt_photos_ml.record"] = RequestRecord(known_as, scope["method"], scope["path"])
    return record
