# SPDX-License-Identifier: AGPL-3.0-only
"""Closed routes need the key; the key and the length are checked before the body is read."""

from collections.abc import Iterator

import httpx
import pytest

from contract.api import Api

UPLOADS = ["/ocr", "/clip/img", "/clip/txt", "/represent"]
CLOSED = [
    *(("POST", route) for route in (*UPLOADS, "/check", "/restart", "/restart_v2", "/predict", "/", "/ping")),
    *(("GET", route) for route in ("/ping/", "/PING", "/check", "/docs", "/openapi.json")),
    ("OPTIONS", "/ocr"),
    ("DELETE", "/nowhere"),
]
WRONG_METHODS = [
    *(("GET", route) for route in ("/check", "/ocr", "/clip/txt", "/restart", "/restart_v2")),
    *(("POST", route) for route in ("/ping", "/")),
    ("PUT", "/clip/img"),
    ("DELETE", "/represent"),
]


@pytest.fixture(scope="module")
def stranger(api: Api) -> Iterator[httpx.Client]:
    """A client that knows the address but not the key."""
    with httpx.Client(base_url=api.url, timeout=60, trust_env=False) as client:
        yield client


def is_refused(answer: httpx.Response) -> bool:
    kind = answer.headers["content-type"]
    return (answer.status_code, answer.json(), kind) == (401, {"detail": "Invalid API key"}, "application/json")


@pytest.mark.parametrize(("method", "route"), CLOSED)
def test_without_the_key_a_closed_route_is_401(api: Api, stranger: httpx.Client, method: str, route: str) -> None:
    wrong: list[list[tuple[str, str]]] = [
        [],
        [("api-key", "")],
        [("api-key", "wrong")],
        [("api-key", api.key[:-1])],
        [("api-key", f"{api.key}x")],
        [("api-key", api.key.swapcase())],
        [("authorization", f"Bearer {api.key}")],
        [("api-key", api.key), ("api-key", api.key)],
        [("api-key", "wrong"), ("api-key", api.key)],
    ]
    for headers in wrong:
        answer = stranger.request(method, route, params={"api-key": api.key}, headers=headers)
        assert is_refused(answer), headers


@pytest.mark.parametrize("route", ["/", "/ping", "/ready"])
@pytest.mark.parametrize("headers", [{}, {"api-key": "wrong"}])
def test_the_page_the_ping_and_ready_need_no_key(stranger: httpx.Client, route: str, headers: dict[str, str]) -> None:
    for method in ("GET", "HEAD"):
        assert stranger.request(method, route, headers=headers).status_code == 200


@pytest.mark.parametrize("route", UPLOADS)
@pytest.mark.parametrize("length", [1_000_000, 10_000_000_000])
def test_a_wrong_key_is_401_before_the_body_is_sent(api: Api, route: str, length: int) -> None:
    with api.begun(route, {"api-key": "wrong", "content-length": str(length)}) as connection:
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (401, b'{"detail":"Invalid API key"}')


@pytest.mark.parametrize("route", [*UPLOADS, "//OCR/"])
def test_a_body_over_the_limit_is_413_before_it_is_sent(api: Api, route: str) -> None:
    with api.begun(route, {"api-key": api.key, "content-length": "10000000000"}) as connection:
        answer = connection.getresponse()
        told = httpx.Response(answer.status, content=answer.read()).json()
        assert answer.status == 413
        assert told == {"result": [], "msg": told["msg"]}
        assert "limit" in told["msg"]


@pytest.mark.parametrize("route", UPLOADS)
def test_a_client_that_sends_its_whole_body_with_a_wrong_key_gets_the_401(stranger: httpx.Client, route: str) -> None:
    for size in (0, 1000, 20_000_000):
        files = {"file": ("photo.jpg", bytes(size), "image/jpeg")}
        assert is_refused(stranger.post(route, files=files, headers={"api-key": "wrong"}))


def test_with_the_key_an_unknown_path_is_not_found(api: Api) -> None:
    assert api.http.post("/nowhere").status_code == 404
    assert api.http.get("/ocr/more").status_code == 404


@pytest.mark.parametrize(("method", "route"), WRONG_METHODS)
def test_with_the_key_a_wrong_method_is_not_allowed(api: Api, method: str, route: str) -> None:
    assert api.http.request(method, route).status_code == 405
