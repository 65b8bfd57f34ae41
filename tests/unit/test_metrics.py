# SPDX-License-Identifier: AGPL-3.0-only
"""What the service counts: read by Prometheus' own parser, closed by the key."""

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.record import RequestRecord
from mt_photos_ml.dashboard.metrics import MINUTES, Metrics, Sample
from service import Service, post, running


def read(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The samples by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def record(path: str = "/ocr", status: int = 200, **known: Any) -> RequestRecord:
    return RequestRecord("id", "POST", path, status, **known)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by the service's clock: what is in it."""
    now = [600.0]
    monkeypatch.setattr("mt_photos_ml.dashboard.metrics.time.time", lambda: now[0])
    return now


def test_a_running_service_tells_requests_errors_steps_queues_models_and_memory(service: Service, photo: bytes) -> None:
    post(service, "/ocr", photo)
    post(service, "/ocr", b"no photo")
    with service.client() as client:
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    told = read(answer.text)
    assert told["mt_photos_ml_requests_total"][("path", "/ocr"), ("status", "200")] == 2
    assert told["mt_photos_ml_errors_total"][("path", "/ocr"), ("reason", "PhotoError")] == 1
    assert told["mt_photos_ml_step_seconds_count"][("path", "/ocr"), ("step", "model")] == 1
    assert told["mt_photos_ml_step_seconds_sum"][("path", "/ocr"), ("step", "total")] > 0
    assert set(told["mt_photos_ml_waiting"]) == {(("queue", name),) for name in ("photos", "texts", "uploads")}
    assert len(told["mt_photos_ml_model_loaded"]) == 2
    assert told["mt_photos_ml_memory_bytes"][(("kind", "anonymous"),)] > 10_000_000
    assert abs(told["mt_photos_ml_start_time_seconds"][()] - time.time()) < 100
    (labels,) = told["mt_photos_ml_info"]
    assert labels[0][0] == "version"


@pytest.mark.parametrize(("setting", "without", "with_key"), [("key", 401, 200), ("open", 200, 200), ("off", 401, 404)])
def test_they_are_closed_by_the_key_unless_told_otherwise(
    cache: Path, tmp_path: Path, setting: str, without: int, with_key: int
) -> None:
    with running(tmp_path, {**demo_environment(cache), "METRICS": setting}) as service:
        for key, status in ((None, without), ("the key of the tests", with_key)):
            with service.client(key) as client:
                assert client.get("/metrics").status_code == status


def test_a_path_that_somebody_made_up_is_no_label(service: Service) -> None:
    with service.client() as client:
        for i in range(3):
            client.post(f"/nowhere/{i}")
        told = read(client.get("/metrics").text)
    paths = {dict(labels)["path"] for labels in told["mt_photos_ml_requests_total"]}
    assert paths <= {"/ping", "other", "/check"}


def test_odd_labels_are_escaped() -> None:
    metrics = Metrics()
    odd = 'a "b" \\ c\nd \\n'
    text = metrics.text([("odd", "Odd.", [("", {"name": odd}, 1)])])
    assert read(text)["mt_photos_ml_odd"] == {(("name", odd),): 1}


def test_only_what_was_answered_counts_as_a_photo(clock: list[float]) -> None:
    metrics = Metrics()
    metrics.observe(record(total_ms=40, model_ms=30))
    metrics.observe(record("/clip/img", total_ms=20))
    metrics.observe(record("/clip/txt"))
    failed = record()
    failed.fail(ValueError("damaged"))
    metrics.observe(failed)
    metrics.observe(record("/represent", 503))
    assert metrics.photos == 2
    assert metrics.per_minute() == [0] * (MINUTES - 1) + [2]
    assert metrics.mean_ms()["/ocr"] == {"count": 1, "wait": 0, "decode": 0, "model": 30, "total": 40}
    assert [error.message for error in metrics.errors] == ["damaged"]
    clock[0] += 120
    assert metrics.per_minute()[-3:] == [2, 0, 0]


def test_every_family_says_what_it_is_and_of_what_type() -> None:
    families = text_string_to_metric_families(Metrics().text([("waiting", "Requests that wait.", [])]))
    assert {family.name: (family.type, family.documentation) for family in families} == {
        "mt_photos_ml_requests": ("counter", "Requests answered."),
        "mt_photos_ml_errors": ("counter", "Requests that failed, by the kind of error."),
        "mt_photos_ml_step_seconds": ("summary", "Time of the steps of answered requests."),
        "mt_photos_ml_waiting": ("gauge", "Requests that wait."),
    }


def test_requests_are_counted_by_path_and_status_and_errors_by_their_kind() -> None:
    metrics = Metrics()
    for path, status in (("/ocr", 200), ("/ocr", 200), ("/ocr", 503), ("/predict", 200), ("/made/up", 404)):
        metrics.observe(record(path, status))
    for path, error in (("/ocr", ValueError("a")), ("/ocr", ValueError("b")), ("/made/up", KeyError("c"))):
        failed = record(path, 400)
        failed.fail(error)
        metrics.observe(failed)
    told = read(metrics.text([]))
    assert told["mt_photos_ml_requests_total"] == {
        (("path", "/ocr"), ("status", "200")): 2,
        (("path", "/ocr"), ("status", "400")): 2,
        (("path", "/ocr"), ("status", "503")): 1,
        (("path", "/predict"), ("status", "200")): 1,
        (("path", "other"), ("status", "400")): 1,
        (("path", "other"), ("status", "404")): 1,
    }
    assert told["mt_photos_ml_errors_total"] == {
        (("path", "/ocr"), ("reason", "ValueError")): 2,
        (("path", "other"), ("reason", "KeyError")): 1,
    }
    assert [error.message for error in metrics.errors] == ["b", "a"], "who asks for nonsense drives no error out"


def test_the_time_of_each_step_is_told_in_seconds_with_how_many_there_were() -> None:
    metrics = Metrics()
    metrics.observe(record(waited_ms=100.0, decode_ms=200.0, model_ms=300.0, total_ms=1000.0))
    metrics.observe(record(total_ms=500.0))
    metrics.observe(record("/clip/txt", total_ms=40.0))
    told = read(metrics.text([]))
    steps = {"wait": 0.1, "decode": 0.2, "model": 0.3, "total": 1.5}
    assert told["mt_photos_ml_step_seconds_sum"] == {
        **{(("path", "/ocr"), ("step", step)): spent for step, spent in steps.items()},
        **{(("path", "/clip/txt"), ("step", step)): 0 for step in ("wait", "decode", "model")},
        (("path", "/clip/txt"), ("step", "total")): 0.04,
    }
    assert told["mt_photos_ml_step_seconds_count"] == {
        **{(("path", "/ocr"), ("step", step)): 2 for step in steps},
        **{(("path", "/clip/txt"), ("step", step)): 1 for step in steps},
    }
    assert metrics.mean_ms() == {
        "/ocr": {"count": 2, "wait": 50, "decode": 100, "model": 150, "total": 750},
        "/clip/txt": {"count": 1, "wait": 0, "decode": 0, "model": 0, "total": 40},
    }


def test_a_mean_has_one_decimal() -> None:
    metrics = Metrics()
    for total_ms in (10.0, 10.0, 11.0):
        metrics.observe(record(total_ms=total_ms))
    assert metrics.mean_ms()["/ocr"]["total"] == 10.3


def test_photos_are_counted_by_the_minute_in_which_they_were_answered(clock: list[float]) -> None:
    metrics = Metrics()
    assert metrics.started == 600
    for seconds in (600, 659.9, 660, 3600, 4199.9):
        clock[0] = seconds
        for path in ("/ocr", "/clip/img", "/represent", "/clip/txt", "/check"):
            metrics.observe(record(path))
    assert metrics.per_minute() == [6, 3, *[0] * 48, 3, *[0] * 8, 3]
    clock[0] = 4200
    assert metrics.per_minute() == [3, *[0] * 48, 3, *[0] * 8, 3, 0]
    assert metrics.photos == 15


def test_what_is_counted_by_the_minute_takes_no_more_memory_the_longer_it_runs(clock: list[float]) -> None:
    metrics = Metrics()
    for minute in range(100):
        clock[0] = 60.0 * minute
        metrics.observe(record())
    assert metrics.per_minute() == [1] * 60
    assert len(metrics._minutes) == 60


def test_an_error_is_kept_with_when_and_where_it_was(clock: list[float]) -> None:
    metrics = Metrics()
    failed = record("/represent", 503)
    failed.fail(RuntimeError("no memory"))
    metrics.observe(failed)
    (kept,) = metrics.errors
    assert (kept.at, kept.path, kept.status, kept.message) == (600, "/represent", 503, "no memory")


def test_a_number_is_written_whole() -> None:
    metrics = Metrics()
    samples: list[Sample] = [("", {"kind": "a", "of": "b"}, 123_456_789), ("_more", {}, 1_700_000_000.123)]
    text = metrics.text([("bytes", "Bytes.", samples)])
    assert 'mt_photos_ml_bytes{kind="a",of="b"} 123456789\n' in text
    assert "mt_photos_ml_bytes_more 1700000000.123\n" in text


def test_the_last_errors_are_kept_and_no_more() -> None:
    metrics = Metrics()
    for i in range(30):
        failed = record(status=503)
        failed.fail(RuntimeError(f"error {i}"))
        metrics.observe(failed)
    assert [error.message for error in metrics.errors][:2] == ["error 29", "error 28"]
    assert len(metrics.errors) == 20
