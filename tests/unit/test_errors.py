# SPDX-License-Identifier: AGPL-3.0-only
"""The replies to errors: a bad photo is final, other errors are retried, unexpected ones are only in the log."""

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from mt_photos_ml.api.errors import HANDLERS, BadForm, Conflict, NotThere, TooLarge, TooSlow
from mt_photos_ml.api.middleware.access_log import AccessLogMiddleware
from mt_photos_ml.engine import TaskOff
from mt_photos_ml.engine.workers import Busy
from mt_photos_ml.models.loader import ModelUnavailable
from mt_photos_ml.photo.decoders import DecoderMissing, PhotoError
from mt_photos_ml.runtime import InferenceError
from mt_photos_ml.tasks.vectors import NotAVector


class OtherForm(BadForm):
    """A derived class gets the reply of its base."""


CASES: list[tuple[Exception, int, str | None, str]] = [
    (PhotoError("the file is empty"), 200, None, "the file is empty"),
    (BadForm("no field 'file'"), 422, None, "no field 'file'"),
    (OtherForm("no field"), 422, None, "no field"),
    (TooLarge(2_600_000), 413, None, "the upload is over the limit of 3 MB"),
    (TooSlow(), 408, None, "the upload stalled"),
    (TaskOff("ocr is off"), 404, None, "ocr is off"),
    (NotThere("no model"), 404, None, "no model"),
    (Conflict("in use"), 409, None, "in use"),
    (ModelUnavailable("no mirror", 30.2), 503, "31", "no mirror"),
    (ModelUnavailable("no mirror", 0), 503, "1", "no mirror"),
    (ModelUnavailable("no mirror"), 503, "30", "no mirror"),
    (Busy("100 are waiting"), 503, "5", "100 are waiting"),
    (DecoderMissing("HEIC"), 503, "3600", "HEIC"),
    (MemoryError("0x7f"), 503, "60", "there is not enough memory for this photo now"),
    (NotAVector("half precision"), 503, "3600", "half precision"),
    (InferenceError("clip can't compute"), 503, "60", "clip can't compute"),
    (ClientDisconnect(), 400, None, "the client disconnected"),
    (ZeroDivisionError("/secret/path"), 500, None, "something went wrong in the service; its log says what"),
]


@pytest.mark.parametrize(("error", "status", "retry", "message"), CASES, ids=lambda case: type(case).__name__)
def test_an_error_is_answered_and_logged(
    error: Exception, status: int, retry: str | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: Request) -> Response:
        raise error

    app = Starlette(routes=[Route("/", fail)], exception_handlers=HANDLERS)
    app.add_middleware(AccessLogMiddleware, "nas-1")
    with caplog.at_level("INFO"), TestClient(app, raise_server_exceptions=False) as client:
        reply = client.get("/")
    assert (reply.status_code, reply.json()) == (status, {"result": [], "msg": message})
    assert reply.headers.get("retry-after") == retry
    assert reply.headers.get("connection") == ("close" if status == 408 else None)
    assert f"GET / {status} {str(error) or type(error).__name__}, total" in caplog.text


def test_an_unexpected_error_reaches_the_server_which_logs_its_traceback() -> None:
    async def fail(request: Request) -> Response:
        raise ZeroDivisionError("by zero")

    app = Starlette(routes=[Route("/", fail)], exception_handlers=HANDLERS)
    with TestClient(app) as client, pytest.raises(ZeroDivisionError, match="by zero"):
        client.get("/")
