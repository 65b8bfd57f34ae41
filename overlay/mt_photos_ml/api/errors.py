# SPDX-License-Identifier: AGPL-3.0-only
"""The reply to each error: 200 for an unusable photo, because MT Photos sends it again after any other status."""

from collections.abc import Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from ..engine import TaskOff
from ..engine.workers import Busy
from ..models.loader import ModelUnavailable
from ..photo.decoders import DecoderMissing, NotEnoughMemory, PhotoError
from ..runtime import InferenceError
from ..tasks.vectors import NotAVector
from .replies import failure
from .trace import trace_of


class BadForm(ValueError):
    """The request does not have the form that the route expects; the message says what it expects."""


class TooLarge(ValueError):
    """The body is over the limit."""

    def __init__(self, limit: int) -> None:
        """limit: bytes."""
        super().__init__(f"the upload is over the limit of {limit / 1e6:.0f} MB")


class TooSlow(TimeoutError):
    """The upload stalled."""


class NotThere(LookupError):
    """Nothing has this name."""


class Conflict(RuntimeError):
    """The action can't be done while another is in progress."""


_ANSWERS: dict[type[Exception], tuple[int, float | None, str]] = {
    PhotoError: (200, None, ""),
    BadForm: (422, None, ""),
    TooLarge: (413, None, ""),
    TooSlow: (408, None, "the upload stalled"),
    ClientDisconnect: (400, None, "the client disconnected"),  # only the log shows it
    TaskOff: (404, None, ""),
    NotThere: (404, None, ""),
    Conflict: (409, None, ""),
    Busy: (503, 5, ""),
    ModelUnavailable: (503, None, ""),  # has a retry_after of its own
    NotEnoughMemory: (503, 3600, ""),
    MemoryError: (503, 60, "there is not enough memory for this photo now"),
    DecoderMissing: (503, 3600, ""),
    NotAVector: (503, 3600, ""),
    InferenceError: (503, 60, ""),
}
"""The status, the seconds for Retry-After, and a message instead of the error's own."""


def answer(error: Exception) -> Response:
    """The reply to one of the errors above, or to one of a class derived from them."""
    kind = next(kind for kind in type(error).__mro__ if kind in _ANSWERS)
    status, retry_after, message = _ANSWERS[kind]
    retry_after = error.retry_after if isinstance(error, ModelUnavailable) else retry_after
    headers = {"connection": "close"} if isinstance(error, TooSlow) else None
    return failure(status, message or str(error), headers, retry_after)


async def _answer_known(request: Request, error: Exception) -> Response:
    trace_of(request.scope).fail(error)
    return answer(error)


async def _answer_unknown(request: Request, error: Exception) -> Response:
    """Answers 500. The framework then raises the error again, and the server logs its traceback."""
    return failure(500, "something went wrong in the service; its log says what")


HANDLERS: Mapping[type[Exception], ExceptionHandler] = {
    **dict.fromkeys(_ANSWERS, _answer_known),
    Exception: _answer_unknown,
}
"""The framework's exception_handlers."""
