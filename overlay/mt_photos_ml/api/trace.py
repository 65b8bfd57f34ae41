# SPDX-License-Identifier: AGPL-3.0-only
"""What is known of a request while it is answered: for its line in the log, the metrics and the client."""

import re
import secrets
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
        megabytes = None if self.megabytes is None else f"{self.megabytes:.1f} MB"
        spent = self._steps()
        steps = [f"{name} {spent[name]:.0f} ms" for name in ("wait", "model", "decode") if name in spent]
        told = (self.photo, megabytes, self.note, *steps, self.error, f"total {self.total_ms:.0f} ms", f"id {self.id}")
        return f"{self.method} {path} {self.status} {', '.join(filter(None, told))}"

    def timing(self) -> str:
        """For the header Server-Timing (W3C), of which browsers make a page's own figures."""
        steps = {**self._steps(), "total": self.elapsed_ms()}
        return ", ".join(f"{name};dur={value:.1f}" for name, value in steps.items())

    def _steps(self) -> dict[str, float]:
        """Milliseconds."""
        steps = {"wait": self.waited_ms, "decode": self.decode_ms, "model": self.model_ms}
        return {name: spent for name, spent in steps.items() if spent is not None}


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
