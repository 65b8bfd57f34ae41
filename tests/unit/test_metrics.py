# SPDX-License-Identifier: AGPL-3.0-only
"""What the service counts, as Prometheus' own parser reads it."""

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from demo.__main__ import environment as demo_environment
from mt_photos_ml import version
from mt_photos_ml.api.trace import RequestTrace
from mt_photos_ml.dashboard.metrics import Failure, Metrics
from service import KEY, post, running


def read(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The samples by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        assert (family.documentation != "", family.type in ("counter", "histogram", "gauge")) == (True, True)
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def observe(metrics: Metrics, path: str = "/ocr", status: int = 200, error: Exception | None = None, **ms: Any) -> None:
    trace = RequestTrace(id="id", method="POST", path=path, status=status, **ms)
    if error:
        trace.fail(error)
    metrics.observe(trace)


def test_metrics_cover_requests_errors_steps_queues_models_and_memory(
    cache: Path, tmp_path: Path, photo: bytes
) -> None:
    given = {"INSTANCE_NAME": "nas-1", "MACHINE_LEARNING_REQUEST_THREADS": "3"}
    with running(tmp_path, {**demo_environment(cache), **given}) as service:
        post(service, "/ocr", photo)
        post(service, "/ocr", b"no photo")
        with service.client() as client:
            client.post("/nowhere/1")
            answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    told = read(answer.text)
    assert told["mt_photos_ml_requests_total"][("path", "/ocr"), ("status", "200")] == 2
    assert {dict(labels)["path"] for labels in told["mt_photos_ml_requests_total"]} == {"/ocr", "other"}
    assert told["mt_photos_ml_errors_total"][("path", "/ocr"), ("reason", "PhotoError")] == 1
    assert told["mt_photos_ml_step_seconds_count"][("path", "/ocr"), ("step", "model")] == 1
    assert told["mt_photos_ml_step_seconds_sum"][("path", "/ocr"), ("step", "total")] > 0
    assert {"mt_photos_ml_upload_bytes", "mt_photos_ml_model_loaded", "mt_photos_ml_info"} <= told.keys()
    assert told["mt_photos_ml_info"] == {(("name", "nas-1"), ("version", version())): 1}
    assert told["mt_photos_ml_slots"] == {(("queue", "photos"),): 3, (("queue", "texts"),): 1}
    limits = {"photos": 103, "texts": 101, "uploads": 512}
    assert told["mt_photos_ml_waiting_limit"] == {(("queue", name),): most for name, most in limits.items()}
    assert told["mt_photos_ml_upload_bytes_limit"][()] == 256_000_000
    assert told["mt_photos_ml_waiting"] == {(("queue", name),): 0 for name in ("photos", "texts", "uploads")}
    assert told["mt_photos_ml_memory_bytes"][(("kind", "anonymous"),)] > 10_000_000
    assert abs(told["mt_photos_ml_start_time_seconds"][()] - time.time()) < 100


@pytest.mark.parametrize(("setting", "without", "with_key"), [("open", 200, 200), ("off", 401, 404)])
def test_metrics_may_be_open_or_off(cache: Path, tmp_path: Path, setting: str, without: int, with_key: int) -> None:
    with running(tmp_path, {**demo_environment(cache), "METRICS": setting}) as service:
        for key, status in ((None, without), (KEY, with_key)):
            with service.client(key) as client:
                assert client.get("/metrics").status_code == status


def test_odd_labels_are_escaped_and_numbers_keep_all_digits() -> None:
    odd = 'a "b" \\ c\nd \\n'
    text = Metrics().text([("odd", "Odd.", [("", {"name": odd, "of": "b"}, 1_700_000_000.123)])])
    assert read(text)["mt_photos_ml_odd"] == {(("name", odd), ("of", "b")): 1_700_000_000.123}


def test_requests_are_counted_by_path_and_status_and_errors_by_kind() -> None:
    metrics = Metrics()
    for path, status in (("/ocr", 200), ("/ocr", 200), ("/ocr", 503), ("/predict", 200), ("/made/up", 404)):
        observe(metrics, path, status)
    for path, error in (("/ocr", ValueError("a")), ("/ocr", ValueError("b")), ("/made/up", KeyError("c"))):
        observe(metrics, path, 400, error)
    told = read(metrics.text([]))
    counts = {("/ocr", 200): 2, ("/ocr", 400): 2, ("/ocr", 503): 1, ("/predict", 200): 1}
    assert told["mt_photos_ml_requests_total"] == {
        (("path", path), ("status", str(status))): count
        for (path, status), count in {**counts, ("other", 400): 1, ("other", 404): 1}.items()
    }
    assert told["mt_photos_ml_errors_total"] == {
        (("path", "/ocr"), ("reason", "ValueError")): 2,
        (("path", "other"), ("reason", "KeyError")): 1,
    }
    assert [error.message for error in metrics.errors] == ["b", "a"], "errors of unknown paths are not kept"


def test_steps_of_successful_requests_are_counted_in_seconds_and_averaged() -> None:
    metrics = Metrics()
    observe(metrics, waited_ms=100.0, decode_ms=200.0, model_ms=300.0, total_ms=1000.0)
    observe(metrics, total_ms=501.0)
    observe(metrics, "/clip/txt", total_ms=40.0)
    observe(metrics, status=503, total_ms=9000.0)
    observe(metrics, error=ValueError("damaged"), total_ms=9000.0)
    told, steps = read(metrics.text([])), {"wait": 0.1, "decode": 0.2, "model": 0.3, "total": 1.501}
    for step, spent in steps.items():
        assert told["mt_photos_ml_step_seconds_sum"][("path", "/ocr"), ("step", step)] == spent
        assert told["mt_photos_ml_step_seconds_count"][("path", "/ocr"), ("step", step)] == 2
    buckets = {
        (labels["step"], labels["le"]): count
        for labels, count in ((dict(pairs), n) for pairs, n in told["mt_photos_ml_step_seconds_bucket"].items())
        if labels["path"] == "/ocr"
    }
    assert [buckets["total", top] for top in ("0.5", "1.0", "2.5", "+Inf")] == [0, 2, 2, 2]
    assert [buckets["decode", top] for top in ("0.01", "0.1", "0.25", "+Inf")] == [1, 1, 2, 2]
    assert metrics.mean_ms() == {
        "/ocr": {"count": 2, "wait": 50, "decode": 100, "model": 150, "total": 750.5},
        "/clip/txt": {"count": 1, "wait": 0, "decode": 0, "model": 0, "total": 40},
    }


def test_successful_photos_are_counted_by_the_minute_for_an_hour() -> None:
    now = [600.0]
    metrics = Metrics(lambda: now[0])
    for now[0] in (600, 659.9, 660, 3600, 4199.9):
        for path in ("/ocr", "/clip/img", "/represent", "/clip/txt", "/check"):
            observe(metrics, path)
        observe(metrics, error=ValueError("damaged"))
        observe(metrics, status=503)
    assert metrics.per_minute() == [6, 3, *[0] * 48, 3, *[0] * 8, 3]
    now[0] = 4200
    assert metrics.per_minute() == [3, *[0] * 48, 3, *[0] * 8, 3, 0]
    assert (metrics.started, metrics.photos) == (600, 15)


def test_the_last_errors_are_kept_with_their_time_and_route() -> None:
    metrics = Metrics(lambda: 600.0)
    for i in range(30):
        observe(metrics, "/represent", 503, RuntimeError(f"error {i}"))
    assert list(metrics.errors) == [Failure(600, "/represent", 503, f"error {i}") for i in range(29, 9, -1)]
