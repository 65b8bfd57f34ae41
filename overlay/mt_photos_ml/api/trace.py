# SPDX-License-Identifier: AGPL-3.0-only
"""The facts about a request for its line in the log, for the metrics and for the client."""

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
    """A request, and what the engine did for it. error: why it failed. reason: the class of the error."""

    id: str
    method: str
    path: str
    status: int = 500  # the framework's reply to an unexpected error
    error: str | None = None
    reason: str | None = None
    total_ms: float = 0.0

    def fail(self, error: Exception) -> None:
        """Records why the request failed: the message, and the error's class, by which the metrics count it."""
        said = " ".join(str(error).split()) or type(error).__name__
        said = said if len(said) <= _MAX_ERROR_LENGTH else f"{said[: _MAX_ERROR_LENGTH - 1]}…"
        self.error = "".join(letter if letter.isprintable() else _escaped(letter) for letter in said)
        self.reason = type(error).__name__

    def line(self) -> str:
        """The request's line in the log."""
        path = _escaped(self.path[:_MAX_PATH_LENGTH])  # a line break in it could forge a line of the log
        megabytes = None if self.megabytes is None else f"{self.megabytes:.1f} MB"
        spent = self._steps()
        steps = [f"{name} {spent[name]:.0f} ms" for name in ("wait", "model", "decode") if name in spent]
        told = (self.photo, megabytes, self.note, *steps, self.error, f"total {self.total_ms:.0f} ms", f"id {self.id}")
        return f"{self.method} {path} {self.status} {', '.join(filter(None, told))}"

    def timing(self) -> str:
        """The value of the header Server-Timing (W3C), which browsers show."""
        steps = {**self._steps(), "total": self.elapsed_ms()}
        return ", ".join(f"{name};dur={value:.1f}" for name, value in steps.items())

    def _steps(self) -> dict[str, float]:
        """Milliseconds by step, as far as known."""
        steps = {"wait": self.waited_ms, "decode": self.decode_ms, "model": self.model_ms}
        return {name: spent for name, spent in steps.items() if spent is not None}


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode()


def begin_trace(scope: Scope) -> RequestTrace:
    """Begins a trace. Its id is the client's X-Request-ID if that is valid, otherwise a new one."""
    own = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    id = own.decode() if _ID.fullmatch(own) else secrets.token_hex(6)
    trace = scope["mt_photos_ml.trace"] = RequestTrace(id=id, method=scope["method"], path=scope["path"])
    return trace


def trace_of(scope: Scope) -> RequestTrace:
    """The trace of this request, which AccessLogMiddleware began."""
    trace: RequestTrace = scope["mt_photos_ml.trace"]
    return trace
