# SPDX-License-Identifier: AGPL-3.0-only
"""What is said of errors: of those that are known, and of one that nobody expected."""

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
    ("error", "status", "retry"),
    [
        (PhotoError("the file is empty"), 200, None),
        (errors.BadForm("no field"), 422, None),
        (errors.TooLarge(1_000_000), 413, None),
        (errors.TooSlow(), 408, None),
        (errors.TaskOff("ocr"), 404, None),
        (ModelUnavailable("no mirror", 30), 503, "30"),
        (ModelUnavailable("no mirror", 30.2), 503, "31"),
        (ModelUnavailable("no mirror", 0), 503, "1"),
        (ModelUnavailable("no mirror"), 503, "30"),
        (errors.Busy(100), 503, "5"),
        (DecoderMissing("HEIC"), 503, "3600"),
        (MemoryError(), 503, "60"),
        (NotAVector("half precision"), 503, "3600"),
        (InferenceError("clip can't compute"), 503, "60"),
        (ClientDisconnect(), 400, None),
    ],
)
def test_only_a_photo_that_cannot_be_used_is_done_with(error: Exception, status: int, retry: str | None) -> None:
    reply = errors.answer(error)
    assert reply.status_code == status
    assert reply.headers.get("retry-after") == retry
    body = json.loads(bytes(reply.body))
    assert body["result"] == []
    assert body["msg"]
    assert str(error) in (body["msg"], "")
    assert reply.headers.get("connection") == ("close" if isinstance(error, errors.TooSlow) else None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.TooSlow(), "the upload stopped coming"),
        (ClientDisconnect(), "the client went away"),
        (MemoryError("0x7f"), "there is not enough memory for this photo now"),
        (errors.BadForm("no field"), "no field"),
    ],
)
def test_an_error_is_told_in_words(error: Exception, message: str) -> None:
    assert json.loads(bytes(errors.answer(error).body)) == {"result": [], "msg": message}


@pytest.mark.parametrize(
    ("limit", "megabytes"), [(2_600_000, "3 MB"), (4_096_000_000, "4096 MB"), (10**12, "1000000 MB")]
)
def test_the_limit_is_told_in_megabytes(limit: int, megabytes: str) -> None:
    assert str(errors.TooLarge(limit)) == f"the upload is over the limit of {megabytes}"


def test_an_error_of_a_derived_class_is_answered_as_its_own_kind() -> None:
    class OtherForm(errors.BadForm):
        pass

    assert errors.answer(OtherForm("no field")).status_code == 422


@pytest.mark.parametrize("error", [RuntimeError("/secret/path"), ZeroDivisionError("/secret/path")])
def test_an_error_that_nobody_expected_is_in_the_log_and_not_in_the_reply(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: Request) -> Response:
        raise error

    app = Starlette(routes=[Route("/", fail)], exception_handlers=errors.HANDLERS)
    app.add_middleware(AccessLogMiddleware, Metrics())
    with caplog.at_level("INFO"), TestClient(app, raise_server_exceptions=False) as client:
        reply = client.get("/")
    assert reply.status_code == 500
    assert reply.json() == {"result": [], "msg": "something went wrong in the service; its log says what"}
    assert "GET / 500 /secret/path" in caplog.text


def test_an_error_that_is_known_is_in_the_log_and_in_the_reply(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Request) -> Response:
        raise errors.BadForm("no field 'file'")

    app = Starlette(routes=[Route("/", fail)], exception_handlers=errors.HANDLERS)
    app.add_middleware(AccessLogMiddleware, Metrics())
    with caplog.at_level("INFO"), TestClient(app) as client:
        reply = client.get("/")
    assert (reply.status_code, reply.json()) == (422, {"result": [], "msg": "no field 'file'"})
    assert "GET / 422 no field 'file', total" in caplog.text
