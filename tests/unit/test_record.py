# SPDX-License-Identifier: AGPL-3.0-only
"""The record of a request: its line in the log, its times for the client, the name that it is known by."""

import re
from typing import Any

import pytest

from mt_photos_ml.api import record as record_module
from mt_photos_ml.api.record import RequestRecord, begin, record_of


def of(**known: Any) -> RequestRecord:
    return RequestRecord("a1", "POST", "/ocr", 200, started=100.0, **known)


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a second after those records began."""
    monkeypatch.setattr(record_module, "perf_counter", lambda: 100.25)


def test_the_line_has_all_that_is_known_each_with_its_unit() -> None:
    known = of(
        photo="JPEG 40x30",
        megabytes=1.26,
        note="remembered",
        waited_ms=1.4,
        model_ms=20.6,
        decode_ms=3.7,
        error="damaged",
        total_ms=30.2,
    )
    assert known.line() == (
        "POST /ocr 200 JPEG 40x30, 1.3 MB, remembered, wait 1 ms, model 21 ms, decode 4 ms, damaged, total 30 ms, id a1"
    )


def test_what_there_was_not_is_left_out_and_what_took_no_time_is_not() -> None:
    assert of().line() == "POST /ocr 200 total 0 ms, id a1"
    nothing = of(megabytes=0.0, waited_ms=0.0, model_ms=0.0, decode_ms=0.0)
    assert nothing.line() == "POST /ocr 200 0.0 MB, wait 0 ms, model 0 ms, decode 0 ms, total 0 ms, id a1"


def test_the_client_is_told_the_steps_that_there_were_and_the_time_until_then() -> None:
    assert of().timing() == "total;dur=250.0"
    steps = of(waited_ms=1.26, decode_ms=0.0, model_ms=20.0)
    assert steps.timing() == "wait;dur=1.3, decode;dur=0.0, model;dur=20.0, total;dur=250.0"


def test_an_error_is_counted_by_its_kind() -> None:
    failed = of()
    failed.fail(ZeroDivisionError("by what?"))
    assert (failed.error, failed.reason) == ("by what?", "ZeroDivisionError")


def test_what_a_client_sent_can_not_draw_on_the_terminal_of_who_reads_the_log() -> None:
    failed = of()
    failed.fail(ValueError("\x1b[2J飞机: expected pull, load\nor unload \x07"))
    assert failed.error == "\\x1b[2J飞机: expected pull, load or unload \\x07"


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/check", "headers": list(headers)}


def test_a_request_is_found_again_by_what_the_server_knows_it_by() -> None:
    request = scope()
    made = begin(request)
    assert record_of(request) is made
    assert (made.method, made.path) == ("GET", "/check")


def test_one_without_a_name_has_a_new_one() -> None:
    names = {begin(scope((b"accept", b"text/html"))).id for _ in range(20)}
    assert len(names) == 20
    assert all(re.fullmatch("[0-9a-f]{12}", name) for name in names)


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [
        (b"phone-17", True),
        (b"a.b:c_D", True),
        (b"x" * 64, True),
        (b"x" * 65, False),
        (b"", False),
        (b"two words", False),
        (b"two\nlines", False),
        (b"end\n", False),
        ("飞机".encode(), False),
    ],
)
def test_the_client_s_own_name_is_kept_where_it_fits_into_a_line(sent: bytes, is_kept: bool) -> None:
    kept = begin(scope((b"accept", b"*/*"), (b"x-request-id", sent))).id
    assert (kept.encode() == sent) == is_kept
