# SPDX-License-Identifier: AGPL-3.0-only
"""Nobody gets in without the key, guessers are slowed down, and the key is in no log."""

import tracemalloc
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.middleware.auth import WRONG_KEYS_A_MINUTE, ApiKeyMiddleware, KeyThrottle
from mt_photos_ml.api.middleware.lifecycle import Lifecycle
from mt_photos_ml.app import create_app
from mt_photos_ml.settings import DEFAULT_KEY, Settings
from service import KEY, Service, running
from trust.tally import count


async def tomorrow(request: Request) -> Response:
    return PlainTextResponse("inside")


def test_a_new_route_is_closed_by_default(cache: Path) -> None:
    app = create_app(Settings(API_AUTH_KEY=KEY, MACHINE_LEARNING_CACHE_FOLDER=cache), Lifecycle())
    app.add_route("/tomorrow", tomorrow, methods=["GET", "POST"])
    with TestClient(app) as client:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT"):
            for headers in ({}, {"api-key": "wrong"}):
                assert client.request(method, "/tomorrow", headers=headers).status_code == 401
                count("inputs tried")
        assert client.get("/tomorrow", headers={"api-key": KEY}).text == "inside"


@pytest.mark.parametrize(
    "path", ["//check", "/ping/../check", "/%2e/check", "/ping%2f..%2fcheck", "/check?/ping", "/PING"]
)
def test_other_spellings_of_a_path_need_the_key_too(service: Service, path: str) -> None:
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{service.url}{path}")
        assert answer.status_code == 401
    count("inputs tried", 2)


class At:
    """The middleware as clients at different addresses see it. now: its clock, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._app = ApiKeyMiddleware(PlainTextResponse("inside"), KEY, clock=lambda: self.now)

    def status(self, host: str, key: str | None) -> int:
        """The status of a request from this address with this key; 200 if it is let in."""
        count("inputs tried")
        headers = {"api-key": key} if key is not None else {}
        return TestClient(self._app, client=(host, 1)).post("/check", headers=headers).status_code

    def guess(self, host: str, times: int = WRONG_KEYS_A_MINUTE) -> list[int]:
        return [self.status(host, f"guess {i}") for i in range(times)]


@pytest.fixture
def at() -> At:
    return At()


def test_only_the_address_of_a_guesser_is_blocked_and_only_for_a_minute(at: At) -> None:
    assert at.guess("198.51.100.7") == [401] * WRONG_KEYS_A_MINUTE
    assert at.status("198.51.100.7", "one more") == 429
    assert at.status("198.51.100.7", KEY) == 429, "otherwise it could go on guessing"
    assert at.status("198.51.100.8", KEY) == 200
    assert at.status("198.51.100.8", "wrong") == 401
    at.now += 59
    assert at.status("198.51.100.7", KEY) == 429
    at.now += 2
    assert at.status("198.51.100.7", KEY) == 200


def test_an_ipv6_network_counts_as_one_guesser(at: At) -> None:
    for i in range(WRONG_KEYS_A_MINUTE):
        assert at.status(f"2001:db8::{i:x}", f"guess {i}") == 401
    assert at.status("2001:db8::ffff", KEY) == 429
    assert at.status("2001:db8:0:1::1", KEY) == 200
    assert at.status("::ffff:198.51.100.9", "guess") == 401, "each IPv4 address counts by itself"


def test_behind_a_proxy_a_guesser_does_not_lock_out_a_client_that_has_used_the_key(at: At) -> None:
    assert at.status("172.17.0.1", KEY) == 200
    assert at.guess("172.17.0.1", 3 * WRONG_KEYS_A_MINUTE)[-1] == 429
    assert at.status("172.17.0.1", KEY) == 200


def test_an_old_key_sent_again_and_again_blocks_nobody(at: At) -> None:
    assert [at.status("198.51.100.7", "the old key") for _ in range(100)] == [401] * 100
    assert [at.status("198.51.100.7", None) for _ in range(100)] == [401] * 100
    assert at.status("198.51.100.7", KEY) == 200


def test_any_number_of_addresses_takes_bounded_memory() -> None:
    throttle, sizes = KeyThrottle(), []
    tracemalloc.start()
    try:
        for number in range(40_000):
            throttle.seconds_to_wait(f"address {number}", [b"wrong"], False, 0.0)
            throttle.seconds_to_wait(f"address {number}", [b"right"], True, 0.0)
            if number % 20_000 == 19_999:
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] < 1.1 * sizes[0]


@pytest.mark.parametrize(
    ("key", "host", "said"),
    [
        (DEFAULT_KEY, "0.0.0.0", "the default one, which is public"),
        ("no-key", "0.0.0.0", "there is no API key"),
        ("mine", "0.0.0.0", None),
        (DEFAULT_KEY, "127.0.0.1", None),
    ],
)
def test_log_page_and_check_warn_of_a_default_or_missing_key_on_an_open_port(
    cache: Path, tmp_path: Path, key: str, host: str, said: str | None
) -> None:
    with running(tmp_path, {**demo_environment(cache), "API_AUTH_KEY": key}, host=host) as service:
        with service.client(None if key == "no-key" else key) as client:
            warnings = client.post("/check").json()["warnings"]
            page = client.get("/").text
        log = service.log.read_text()
    assert bool(warnings) == ('data-warned="true"' in page) == (" WARNING the" in log) == (said is not None)
    assert said is None or (said in warnings[0] and said in log)


def test_the_key_is_in_no_log_however_it_is_sent(cache: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct-horse-battery\n")
    settings = {**demo_environment(cache), "API_AUTH_KEY_FILE": str(secret), "IMMICH_LOG_LEVEL": "debug"}
    with running(tmp_path, settings, key=None) as service, service.client("correct-horse-battery") as client:
        assert client.post("/check").status_code == 200
        client.post("/check?api-key=correct-horse-battery")
        client.post("/ocr", content=b"correct-horse-battery", headers={"content-type": "text/plain"})
        client.post("/clip/txt", json={"key": "correct-horse-battery"})
        assert client.post("/check", headers={"api-key": "correct-horse-batterx"}).status_code == 401
    log = service.log.read_text()
    assert "/check 401" in log
    assert "correct-horse" not in log
