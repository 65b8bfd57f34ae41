# SPDX-License-Identifier: AGPL-3.0-only
"""What is known of a request while it is answered: for its line in the log, the metrics and the client."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.types import Scope

from ..engine.trace import Trace

_MAX_ERROR_LENGTH = 120  # characters
_MAX_PATH_LENGTH = 200
_ID = re.compile(rb"[\w.:-]{1,64}")


@dataclass(kw_only=True)
class RequestTrace(Trace):
    """A request, and what the engine did for it. error: why it failed, in words. reason: the kind of error."""

    id: str
    method: str
    path: str
    status: int = 500  # what the framework answers to an error that nobody expected
    error: str | None = None
    reason: str | None = None
    total_ms: float = 0.0

    def fail(self, error: Exception) -> None:
        """Why the request failed: in words, and the kind of error by which it is counted."""
        said = " ".join(str(error).split()) or type(error).__name__
        said = said if len(said) <= _MAX_ERROR_LENGTH else f"{said[: _MAX_ERROR_LENGTH - 1]}…"
        self.error = "".join(letter if letter.isprintable() else _escaped(letter) for letter in said)
        self.reason = type(error).__name__

    def line(self) -> str:
        """For a person."""
        path = _escaped(self.path[:_MAX_PATH_LENGTH])  # a line break would forge a line of the log
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


def begin_trace(scope: Scope) -> RequestTrace:
    """A new trace, under the client's own X-Request-ID if it sends one that fits into a line."""
    own = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    id = own.decode() if _ID.fullmatch(own) else secrets.token_hex(6)
    trace = scope["mt_photos_ml.trace"] = RequestTrace(id=id, method=scope["method"], path=scope["path"])
    return trace


def trace_of(scope: Scope) -> RequestTrace:
    """The trace of this request, which AccessLogMiddleware began."""
    trace: RequestTrace = scope["mt_photos_ml.trace"]
    return trace
