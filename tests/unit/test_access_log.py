# SPDX-License-Identifier: AGPL-3.0-only
"""The log of requests."""

import json
from pathlib import Path

import httpx

from demo.__main__ import environment as demo_environment
from service import Service, post, running


def test_every_request_has_a_line_in_the_log(service: Service, photo: bytes) -> None:
    post(service, "/ocr", photo)
    (line,) = [line for line in service.log.read_text().splitlines() if "POST /ocr" in line]
    for word in ("200", "JPEG 2400x1800", "MB", "decode", "model", "total"):
        assert word in line


def test_a_line_break_in_a_path_does_not_forge_a_line_of_the_log(service: Service) -> None:
    httpx.get(f"{service.url}/a%0aINFO%20POST%20/forged%20200")
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
    log = service.log.read_text()
    assert f"id {made}" in log
    assert "id phone-17" in log


def test_the_reply_tells_what_each_step_took(service: Service, photo: bytes) -> None:
    told = post(service, "/ocr", photo).headers["server-timing"]
    steps = dict(part.split(";dur=") for part in told.split(", "))
    assert list(steps) == ["wait", "decode", "model", "total"]
    assert float(steps["total"]) >= float(steps["model"]) > 0
