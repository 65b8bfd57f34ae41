# SPDX-License-Identifier: AGPL-3.0-only
"""The log of requests."""

import json
import re
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.middleware.access_log import AccessLogMiddleware
from mt_photos_ml.api.record import RequestRecord, record_of
from mt_photos_ml.dashboard.metrics import Metrics
from service import Service, post, running, until


def test_every_request_has_a_line_in_the_log(service: Service, photo: bytes) -> None:
    post(service, "/ocr", photo)
    until(lambda: "POST /ocr" in service.log.read_text())  # it comes after the answer
    (line,) = [line for line in service.log.read_text().splitlines() if "POST /ocr" in line]
    for word in ("200", "JPEG 2400x1800", "MB", "decode", "model", "total"):
        assert word in line


def test_a_line_break_in_a_path_does_not_forge_a_line_of_the_log(service: Service) -> None:
    httpx.get(f"{service.url}/a%0aINFO%20POST%20/forged%20200")
    until(lambda: "forged" in service.log.read_text())
    assert not any(line.startswith("INFO POST /forged") for line in service.log.read_text().splitlines())


def test_the_log_level_hides_the_requests(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path, {**demo_environment(cache), "IMMICH_LOG_LEVEL": "error"}) as service:
        with service.client() as client:
            assert json.loads(client.post("/check").content)["result"] == "pass"
            client.post("/clip/txt", json={"text": "red"})
        assert service.log.read_text() == ""


def test_a_request_is_known_by_its_id_in_the_log_and_in_the_reply(service: Service, photo: bytes) -> None:
    made = post(service, "/ocr", photo).headers["x-request-id"]
    with service.client() as client:
        for sent, kept in (("phone-17", True), ("two lines\\n", False), ("x" * 100, False)):
            answer = client.post("/clip/txt", json={"text": "red"}, headers={"x-request-id": sent})
            assert (answer.headers["x-request-id"] == sent) == kept
    until(lambda: {f"id {made}", "id phone-17"} <= set(re.findall(r"id [\w-]+$", service.log.read_text(), re.M)))


def test_the_reply_tells_what_each_step_took(service: Service, photo: bytes) -> None:
    told = post(service, "/ocr", photo).headers["server-timing"]
    steps = dict(part.split(";dur=") for part in told.split(", "))
    assert list(steps) == ["wait", "decode", "model", "total"]
    assert float(steps["total"]) >= float(steps["model"]) > 0


async def answer(request: Request) -> Response:
    record = record_of(request.scope)
    record.photo, record.megabytes = "JPEG 40x30", 0.1
    return PlainTextResponse("fine", int(request.query_params.get("status", 200)))


async def fail(request: Request) -> Response:
    raise ValueError(request.query_params["why"])


def logged() -> Starlette:
    app = Starlette(routes=[Route("/fail", fail), Route("/{path:path}", answer, methods=["GET", "POST"])])
    app.add_middleware(AccessLogMiddleware, Metrics())
    return app


def said(caplog: pytest.LogCaptureFixture, address: str) -> tuple[str, str]:
    """The level and the line in the log of a request."""
    app = logged()
    with caplog.at_level("DEBUG", "mt_photos_ml.access"), TestClient(app, raise_server_exceptions=False) as client:
        client.get(address)
    (record,) = [record for record in caplog.records if record.name == "mt_photos_ml.access"]
    assert vars(record)["record"].line() == record.getMessage(), "for a log in JSON"
    return record.levelname, record.getMessage()


def test_the_headers_are_added_to_those_that_there_are() -> None:
    with TestClient(logged()) as client:
        raw = dict(client.get("/ocr").headers.raw)
    assert re.fullmatch(rb"[0-9a-f]{12}", raw[b"x-request-id"])
    assert re.fullmatch(rb"total;dur=[\d.]+", raw[b"server-timing"])
    assert raw[b"content-length"] == b"4"


def test_an_answer_without_headers_has_these() -> None:
    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    answer = TestClient(AccessLogMiddleware(bare, Metrics())).get("/")
    assert answer.status_code == 204
    assert answer.headers.keys() == {"x-request-id", "server-timing"}


def test_the_line_says_method_path_status_what_others_added_and_the_time(caplog: pytest.LogCaptureFixture) -> None:
    level, line = said(caplog, "/ocr?status=201")
    assert level == "INFO"
    (milliseconds,) = re.fullmatch(r"GET /ocr 201 JPEG 40x30, 0\.1 MB, total (\d+) ms, id [0-9a-f]{12}", line).groups()  # type: ignore[union-attr]
    assert int(milliseconds) < 60_000


@pytest.mark.parametrize(
    ("address", "level"),
    [
        ("/ping", "DEBUG"),
        ("/check", "DEBUG"),
        ("/metrics", "DEBUG"),
        ("/api/status", "DEBUG"),
        ("/ping?status=503", "INFO"),
        ("/check?status=404", "INFO"),
        ("/", "INFO"),
    ],
)
def test_what_asks_only_whether_it_runs_is_quiet(caplog: pytest.LogCaptureFixture, address: str, level: str) -> None:
    assert said(caplog, address)[0] == level


def test_a_long_path_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    _, line = said(caplog, f"/{'a' * 199}b")
    assert f"GET /{'a' * 199} 200 " in line


def test_a_path_of_any_letters_stays_on_its_line(caplog: pytest.LogCaptureFixture) -> None:
    _, line = said(caplog, "/a%0Ab%E9%A3%9E")
    assert line.startswith("GET /a\\nb\\u98de 404 ")


def test_an_error_that_goes_on_is_in_the_line_as_500(caplog: pytest.LogCaptureFixture) -> None:
    _, line = said(caplog, "/fail?why=no+reason")
    assert line.startswith("GET /fail 500 no reason, total ")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("a\nb  c"), "a b c"),
        (ValueError(), "ValueError"),
        (ValueError("long " * 24), ("long " * 24).rstrip()),
        (ValueError("long " * 25), "long " * 23 + "long…"),
        (ValueError("a" * 120), "a" * 120),
        (ValueError("a" * 121), "a" * 119 + "…"),
    ],
)
def test_why_it_failed_is_said_in_one_short_line(error: Exception, words: str) -> None:
    record = RequestRecord("1", "GET", "/")
    record.fail(error)
    assert record.error == words
    assert record.line() == f"GET / 500 {words}, total 0 ms, id 1"
