# SPDX-License-Identifier: AGPL-3.0-only
"""Uploads that stall, break off, lie or are damaged affect only their own client."""

import contextlib
import json
import select
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo
from mt_photos_ml.api.uploads import UPLOAD_IDLE_TIMEOUT, YIELD_SECONDS
from photos import jpeg
from service import KEY, Service, anonymous_mb, post, running, until
from trust.raw import answer_to, connect, received, stalled, status_of, upload_head
from trust.tally import count
from trust.traffic import answered, form, mixed, running_traffic

PHOTO_ROUTES = ("/ocr", "/clip/img", "/represent")


@pytest.fixture(scope="module")
def photo() -> bytes:
    return jpeg(colour_photo("red", (640, 480)))


def test_sixty_stalled_uploads_delay_no_other_request(service: Service) -> None:
    asked = answered(service.url, mixed(each=1))
    with ExitStack() as stack:
        for _ in range(20):
            for route in PHOTO_ROUTES:
                stack.enter_context(stalled(service.url, route, sent=10))
        with running_traffic(service.url, asked, clients=4) as seen:
            time.sleep(3)
    seen.check()
    assert seen.busy == 0
    assert seen.slowest < 20, "a request waited for an upload that stalled"


def test_stalled_uploads_stay_within_the_memory_for_uploads_and_give_way_to_a_photo(
    cache: Path, tmp_path: Path, photo: bytes
) -> None:
    """Thirty clients send two megabytes each. All together may hold eight, so most are refused."""
    with running(tmp_path, {**demo_environment(cache), "MAX_UPLOAD_MB": "4"}) as service, ExitStack() as stack:
        post(service, "/clip/img", photo)
        before = anonymous_mb(service.pid)
        stalling = [stack.enter_context(connect(service.url)) for _ in range(30)]
        body, _ = form(bytes(3_000_000))
        sent = upload_head("/clip/img", len(body)) + body[:2_000_000]
        for at in range(0, len(sent), 65536):  # in turn, so that each holds some
            for connection in stalling:
                connection.settimeout(0.01)
                with contextlib.suppress(OSError):
                    connection.sendall(sent[at : at + 65536])
        time.sleep(YIELD_SECONDS + 0.5)
        assert anonymous_mb(service.pid) - before < 8 + 4 + 30  # and what each connection reads ahead
        refused = _answered(stalling)
        assert {status_of(received(connection, 1)) for connection in refused} <= {0, 503}
        assert post(service, "/clip/img", photo).status_code == 200
        assert len(_answered(stalling)) - len(refused) < 5, "more uploads were ended than the photo needed"
    count("faults injected", 30)


def _answered(connections: Sequence[socket.socket]) -> list[socket.socket]:
    return select.select(connections, [], [], 0)[0]


def test_an_upload_that_stalls_half_way_gets_408_and_holds_no_worker(cache: Path, tmp_path: Path, photo: bytes) -> None:
    settings = {**demo_environment(cache), "MACHINE_LEARNING_REQUEST_THREADS": "1"}
    with running(tmp_path, settings) as service, stalled(service.url, "/clip/img", photo, len(photo) // 2) as half:
        assert post(service, "/clip/img", photo).status_code == 200
        assert status_of(received(half, UPLOAD_IDLE_TIMEOUT + 15)) == 408


def test_clients_that_disconnect_leave_no_connection_open(service: Service, photo: bytes) -> None:
    post(service, "/clip/img", photo)
    before = len(_opened(service))
    for sent in (0, 1, 50, len(photo) // 2, -1, None):
        for route in PHOTO_ROUTES:
            with stalled(service.url, route, photo, sent):
                pass
    until(lambda: len(_opened(service)) <= before)
    assert post(service, "/clip/img", photo).status_code == 200


def test_a_chunked_body_over_the_limit_is_refused(cache: Path, tmp_path: Path) -> None:
    with running(tmp_path, {**demo_environment(cache), "MAX_UPLOAD_MB": "1"}) as service:
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for route in (*PHOTO_ROUTES, "/clip/txt"):
            kind = form(b"")[1] if route != "/clip/txt" else "application/json"
            assert status_of(answer_to(service.url, upload_head(route, None, kind) + chunk * 40)) == 413


def part(name: str, content: bytes = b"1", more: str = "") -> bytes:
    return f'--traffic\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


FORMS = {
    "999 fields": part("other") * 999,
    "5000 fields": part("other") * 5000,
    "999 files": part("file", b"x", '; filename="a"') * 999,
    "5000 files": part("file", b"x", '; filename="a"') * 5000,
    "a long parameter": part("file", b"x", "; a=" + "b" * 1_000_000),
    "a long name": part("f" * 1_000_000),
    "half a boundary": b"--traffic",
    "line breaks": b"\r\n" * 100_000,
    "boundaries only": b"--traffic\r\n" * 100_000,
    "headers without end": b"--traffic\r\n" + b"X-Header: y\r\n" * 20_000 + b"\r\n",
}


@pytest.mark.parametrize("shape", FORMS)
def test_a_form_of_any_shape_is_answered_soon_and_within_bounded_memory(service: Service, shape: str) -> None:
    before, body = anonymous_mb(service.pid), FORMS[shape]
    answer = answer_to(service.url, upload_head("/clip/img", len(body)) + body)
    assert status_of(answer) in {"999 files": {200}, "a long parameter": {200, 422}}.get(shape, {422}), answer[:300]
    assert anonymous_mb(service.pid) - before < 100


SMUGGLED = {
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a list of lengths": b"Content-Length: 5, 6\r\n\r\nhello",
    "a length with a sign": b"Content-Length: +5\r\n\r\nhello",
    "a negative length": b"Content-Length: -5\r\n\r\nhello",
    "a length in hex": b"Content-Length: 0x5\r\n\r\nhello",
    "a length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks of another name": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Content-Length : 5\r\n\r\nhello",
    "a header on two lines": b"X: a\r\n b\r\nContent-Length\r\n\r\n",
    "a zero byte": b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "a chunk of a negative size": b"Transfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
    "a chunk of an endless size": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("shape", SMUGGLED)
def test_a_request_that_a_proxy_could_read_differently_is_refused(served: Service, shape: str) -> None:
    head = f"POST /clip/txt HTTP/1.1\r\nHost: x\r\napi-key: {KEY}\r\nContent-Type: application/json\r\n".encode()
    behind = f"POST /check HTTP/1.1\r\nHost: x\r\napi-key: {KEY}\r\nContent-Length: 0\r\n\r\n".encode()
    answer = answer_to(served.url, head + SMUGGLED[shape] + behind, seconds=5)
    assert b'"pass"' not in answer, "the hidden request was answered"
    assert status_of(answer) in (0, 400)


def test_no_upload_is_written_to_a_file(cache: Path, tmp_path: Path, photo: bytes) -> None:
    """While a large upload comes in, the service opens no new file."""
    scratch, home = tmp_path / "tmp", tmp_path / "home"
    scratch.mkdir()
    home.mkdir()
    with running(tmp_path, {**demo_environment(cache), "TMPDIR": str(scratch), "HOME": str(home)}) as service:
        post(service, "/clip/img", photo)
        before = _opened(service)
        with stalled(service.url, sent=4_900_000):
            time.sleep(0.5)
            new = {path for path in _opened(service) - before if not path.startswith("socket:")}
            assert new == set()
            assert list(scratch.iterdir()) == list(home.iterdir()) == []


def _opened(service: Service) -> set[str]:
    with contextlib.suppress(FileNotFoundError):  # a file was closed meanwhile
        return {str(path.readlink()) for path in Path(f"/proc/{service.pid}/fd").iterdir()}
    return _opened(service)


def test_many_searches_at_once_are_answered_or_get_503(service: Service) -> None:
    with service.client() as client:

        def search(i: int) -> int:
            answer = client.post("/clip/txt", content=json.dumps({"text": f"search {i}"}))
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) > 0
            return answer.status_code

        with ThreadPoolExecutor(150) as clients:
            assert set(clients.map(search, range(600))) <= {200, 503}
    count("inputs tried", 600)
