# SPDX-License-Identifier: AGPL-3.0-only
"""What is answered to errors: known ones, and an unexpected one."""

import json

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from mt_photos_ml.api import errors
from mt_photos_ml.api.middleware.access_log import AccessLogMiddleware
from mt_photos_ml.dashboard.metrics import Metrics
from mt_photos_ml.models.loader import ModelUnavailable
from mt_photos_ml.photo.decoders import DecoderMissing, PhotoError
from mt_photos_ml.runtime import InferenceError
from mt_photos_ml.tasks.vectors import NotAVector


@pytest.mark.parametrize(
    ("error", "status", "retry", "message"),
    [
        (PhotoError("the file is empty"), 200, None, "the file is empty"),
        (errors.BadForm("no field"), 422, None, "no field"),
        (type("OtherForm", (errors.BadForm,), {})("no field"), 422, None, "no field"),
        (errors.TooLarge(2_600_000), 413, None, "the upload is over the limit of 3 MB"),
        (errors.TooSlow(), 408, None, "the upload stopped coming"),
        (errors.TaskOff("ocr"), 404, None, None),
        (ModelUnavailable("no mirror", 30.2), 503, "31", "no mirror"),
        (ModelUnavailable("no mirror", 0), 503, "1", "no mirror"),
        (ModelUnavailable("no mirror"), 503, "30", "no mirror"),
        (errors.Busy(100), 503, "5", None),
        (DecoderMissing("HEIC"), 503, "3600", "HEIC"),
        (MemoryError("0x7f"), 503, "60", "there is not enough memory for this photo now"),
        (NotAVector("half precision"), 503, "3600", "half precision"),
        (InferenceError("clip can't compute"), 503, "60", "clip can't compute"),
        (ClientDisconnect(), 400, None, "the client went away"),
    ],
)
def test_only_a_photo_that_cannot_be_used_is_done_with(
    error: Exception, status: int, retry: str | None, message: str | None
) -> None:
    reply = errors.answer(error)
    assert (reply.status_code, reply.headers.get("retry-after")) == (status, retry)
    assert json.loads(bytes(reply.body)) == {"result": [], "msg": message or str(error)}
    assert reply.headers.get("connection") == ("close" if isinstance(error, errors.TooSlow) else None)


@pytest.mark.parametrize(
    ("error", "status", "said", "logged"),
    [
        (
            RuntimeError("/secret/path"),
            500,
            "something went wrong in the service; its log says what",
            "GET / 500 /secret/path",
        ),
        (errors.BadForm("no field 'file'"), 422, "no field 'file'", "GET / 422 no field 'file', total"),
    ],
)
def test_the_log_tells_every_error_and_the_reply_those_that_are_known(
    error: Exception, status: int, said: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: Request) -> Response:
        raise error

    app = Starlette(routes=[Route("/", fail)], exception_handlers=errors.HANDLERS)
    app.add_middleware(AccessLogMiddleware, Metrics())
    with caplog.at_level("INFO"), TestClient(app, raise_server_exceptions=False) as client:
        reply = client.get("/")
    assert (reply.status_code, reply.json()) == (status, {"result": [], "msg": said})
    assert logged in caplog.text
