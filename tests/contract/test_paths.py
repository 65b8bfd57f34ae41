# SPDX-License-Identifier: AGPL-3.0-only
"""Paths as people type them into MT Photos and as proxies forward them: all work, and none without the key."""

import contextlib
from http.client import HTTPConnection
from typing import Any

import httpx
import orjson
import pytest

from contract.api import PHOTO_ROUTES, Api
from demo.pictures import colour_photo
from photos import jpeg

PHOTO = jpeg(colour_photo("red", (160, 120)))
FORM = httpx.Request("POST", "http://form", files={"file": ("photo.jpg", PHOTO, "image/jpeg")})
SPELLINGS = ["/{}", "//{}", "http://host:8060{}", "HTTPS://[::1]/{}"]
ALMOST_OPEN = ["/ping/..{}", "/ping%2f..{}", "/%2e{}", "{}?/ping", "http://host/ping{}"]


def ask(api: Api, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of a request with exactly this target, which a client library would normalise."""
    address = httpx.URL(api.url)
    with contextlib.closing(HTTPConnection(address.host, address.port or 80, timeout=60)) as connection:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.mark.parametrize("route", PHOTO_ROUTES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_photo_is_processed_however_the_path_is_spelt(api: Api, route: str, spelling: str) -> None:
    headers = {"api-key": api.key, "content-type": FORM.headers["content-type"]}
    found: Any = api.result(route, PHOTO)
    for path in (f"{route}/", route.upper(), f"{route.title()}//"):
        status, body = ask(api, "POST", spelling.format(path), headers, FORM.read())
        assert (status, orjson.loads(body)["result"]) == (200, found)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_other_routes_are_found_however_the_path_is_spelt(api: Api, spelling: str) -> None:
    headers = {"api-key": api.key, "content-type": "application/json"}
    text = b'{"text": "red"}'
    assert ask(api, "POST", spelling.format("/Clip/Txt"), headers, text) == ask(api, "POST", "/clip/txt", headers, text)
    assert ask(api, "POST", spelling.format("/CHECK?t=1"), headers)[0] == 200
    assert ask(api, "GET", spelling.format("/check/"), headers)[0] == 405
    assert ask(api, "POST", spelling.format("/nowhere"), headers)[0] == 404


@pytest.mark.parametrize("target", ["//ping", "http://host:8060/ping", "http://host/ping?t=http://other"])
def test_the_ping_and_the_page_stay_open(api: Api, target: str) -> None:
    assert ask(api, "GET", target, {}) == (200, b"pong")
    assert ask(api, "GET", target.partition("ping")[0], {})[0] == 200


@pytest.mark.parametrize("route", [*PHOTO_ROUTES, "/clip/txt", "/check", "/restart_v2", "/metrics", "/predict"])
@pytest.mark.parametrize("spelling", [*SPELLINGS, *ALMOST_OPEN])
def test_no_spelling_of_a_path_opens_a_closed_route(api: Api, route: str, spelling: str) -> None:
    for path in (route, f"{route}/", route.upper()):
        for method in ("GET", "POST"):
            assert ask(api, method, spelling.format(path), {}) == (401, b'{"detail":"Invalid API key"}')
