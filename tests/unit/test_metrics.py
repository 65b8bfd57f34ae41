# SPDX-License-Identifier: AGPL-3.0-only
"""What the service counts: read by Prometheus' own parser, shown by the dashboard, closed by the key."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.metrics import MINUTES, Metrics
from mt_photos_ml.api.record import RequestRecord
from service import Service, post, running

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


def read(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The samples by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def record(path: str = "/ocr", status: int = 200, **known: Any) -> RequestRecord:
    return RequestRecord("id", "POST", path, status, **known)


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
    text = metrics.text([("odd", "Odd.", [("", {"name": 'a "b" \\ c\nd'}, 1)])])
    assert read(text)["mt_photos_ml_odd"] == {(("name", 'a "b" \\ c\nd'),): 1}


def test_only_what_was_answered_counts_as_a_photo(monkeypatch: pytest.MonkeyPatch) -> None:
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
    later = time.time() + 120
    monkeypatch.setattr("mt_photos_ml.api.metrics.time.time", lambda: later)
    assert metrics.per_minute()[-3:] == [2, 0, 0]


def test_the_last_errors_are_kept_and_no_more() -> None:
    metrics = Metrics()
    for i in range(30):
        failed = record(status=503)
        failed.fail(RuntimeError(f"error {i}"))
        metrics.observe(failed)
    assert [error.message for error in metrics.errors][:2] == ["error 29", "error 28"]
    assert len(metrics.errors) == 20


def test_the_dashboard_is_one_of_grafana_and_asks_for_what_there_is(service: Service, photo: bytes) -> None:
    written = json.loads(DASHBOARD.read_text())
    again = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))
    assert all(again[name] == value for name, value in written.items() if name not in ("panels", "templating"))
    assert [panel["title"] for panel in again["panels"]] == [panel["title"] for panel in written["panels"]]
    assert all({"type", "gridPos", "targets", "fieldConfig"} <= panel.keys() for panel in again["panels"]), (
        "a field that Grafana does not know is dropped"
    )
    post(service, "/ocr", photo)
    post(service, "/ocr", b"no photo")
    with service.client() as client:
        there = read(client.get("/metrics").text)
    asked = set(re.findall(r"mt_photos_ml_\w+", DASHBOARD.read_text()))
    assert asked <= there.keys()
