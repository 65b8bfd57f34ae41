# SPDX-License-Identifier: AGPL-3.0-only
"""The access log has one line for each request, which no client can forge; and every reply gets the same headers."""

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.middleware.access_log import AccessLogMiddleware
from mt_photos_ml.api.trace import RequestTrace, trace_of
from service import Service, post, running, until


def test_a_request_gets_a_log_line_an_id_and_its_times(service: Service, photo: bytes) -> None:
    headers = post(service, "/ocr", photo).headers
    steps = dict(part.split(";dur=") for part in headers["server-timing"].split(", "))
    assert list(steps) == ["wait", "decode", "model", "total"]
    assert float(steps["total"]) >= float(steps["model"]) > 0
    until(lambda: "POST /ocr" in service.log.read_text())  # it is logged after the reply
    (line,) = [line for line in service.log.read_text().splitlines() if "POST /ocr" in line]
    ms = r"\d+ ms"
    assert re.search(rf"200 JPEG 2400x1800, .* MB, wait {ms}, model {ms}, decode {ms}, total {ms}, id ", line)
    assert line.endswith(f"id {headers['x-request-id']}")


def test_a_request_is_logged_and_counted_under_the_path_of_its_route(service: Service) -> None:
    with service.client() as client:
        for path in ("//clip/txt", "/Clip/Txt/"):
            id = client.post(f"{service.url}{path}", json={"text": "red"}).headers["x-request-id"]
            line = re.compile(rf"POST /clip/txt 200 .* id {id}$", re.MULTILINE)
            until(lambda line=line: line.search(service.log.read_text()))  # type: ignore[misc]
        assert '{path="/clip/txt",status="200"} 2\n' in client.get("/metrics").text


def test_log_level_error_hides_successful_requests(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path, {**demo_environment(cache), "IMMICH_LOG_LEVEL": "error"}) as service:
        with service.client() as client:
            assert client.post("/clip/txt", json={"text": "red"}).status_code == 200
        assert service.log.read_text() == ""


async def answer(request: Request) -> Response:
    if why := request.query_params.get("why"):
        raise ValueError(why)
    trace = trace_of(request.scope)
    trace.photo, trace.megabytes, trace.waited_ms = "JPEG 40x30", 0.1, 0.0
    return PlainTextResponse("fine", int(request.query_params.get("status", 200)))


def app(*observed: list[RequestTrace]) -> Starlette:
    app = Starlette(routes=[Route("/{path:path}", answer)])
    app.add_middleware(AccessLogMiddleware, "nas-1", [list_.append for list_ in observed])
    return app


def said(caplog: pytest.LogCaptureFixture, address: str) -> tuple[str, str]:
    """The level and the text of a request's line in the log."""
    observed: list[RequestTrace] = []
    with caplog.at_level("DEBUG", "mt_photos_ml.access"):
        TestClient(app(observed), raise_server_exceptions=False).get(address)
    (record,) = [record for record in caplog.records if record.name == "mt_photos_ml.access"]
    assert [vars(record)["trace"]] == observed
    assert observed[0].line() == record.getMessage()
    assert 0 < observed[0].total_ms < 60_000
    return record.levelname, record.getMessage()


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("/ocr?status=201", "GET /ocr 201 JPEG 40x30, 0.1 MB, wait 0 ms, total "),
        (f"/{'a' * 199}b", f"GET /{'a' * 199} 200 "),
        ("/a%0Ab%E9%A3%9E", "GET /a\\nb\\u98de 404 total "),
        ("/fail?why=no+reason", "GET /fail 500 no reason, total "),
        ("/fail?why=%1B[2J飞机:+a%0A+b%07", "GET /fail 500 \\x1b[2J飞机: a b\\x07, total "),
        (f"/fail?why={'a' * 120}", f"GET /fail 500 {'a' * 120}, total "),
        (f"/fail?why={'a' * 121}", f"GET /fail 500 {'a' * 119}…, total "),
    ],
    ids=["all", "long path", "letters", "error", "control characters", "error of 120", "error of 121"],
)
def test_a_log_line_says_what_happened_and_stays_one_line(
    caplog: pytest.LogCaptureFixture, address: str, line: str
) -> None:
    level, found = said(caplog, address)
    assert level == "INFO"
    assert found.startswith(line)
    assert re.search(r"total \d+ ms, id [0-9a-f]{12}$", found)


@pytest.mark.parametrize("path", ["/ping", "/check", "/metrics", "/api/status"])
def test_requests_of_monitors_are_logged_only_if_they_fail(caplog: pytest.LogCaptureFixture, path: str) -> None:
    assert said(caplog, path)[0] == "DEBUG"
    caplog.clear()
    assert said(caplog, f"{path}?status=404")[0] == "INFO"


def test_readiness_checks_of_proxies_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, "/ready?status=503")[0] == "DEBUG"


def test_every_reply_gets_the_headers() -> None:
    async def bare(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    told = {"x-request-id", "server-timing", "x-instance"}
    assert TestClient(AccessLogMiddleware(bare, "nas-1")).get("/").headers.keys() == told
    headers = TestClient(app()).get("/").headers
    assert headers["x-instance"] == "nas-1"
    assert headers["content-length"] == "4"
    assert re.fullmatch(r"wait;dur=0.0, total;dur=[\d.]+", headers["server-timing"])


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [
        *((sent, True) for sent in (b"a.b:c_D-17", b"x" * 64)),
        *((sent, False) for sent in (b"x" * 65, b"", b"two words", b"two\nlines", b"end\n", "飞机".encode())),
    ],
)
def test_a_clients_request_id_is_kept_if_it_is_safe_in_a_log_line(sent: bytes, is_kept: bool) -> None:
    ids = {TestClient(app()).get("/", headers=[(b"x-request-id", sent)]).headers["x-request-id"] for _ in range(2)}
    assert (ids == {sent.decode()}) == is_kept
    assert len(ids) == (1 if is_kept else 2)
