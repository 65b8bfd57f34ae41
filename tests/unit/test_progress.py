# SPDX-License-Identifier: AGPL-3.0-only
"""The progress of a download: a callback a few times a second, a log line every few seconds, and both at the end."""

import logging
import time
from pathlib import Path

import pytest

from hub_files import DETECTION, VISUAL, WEIGHTS
from hub_server import HubServer
from mt_photos_ml.models import progress
from mt_photos_ml.models.hub import Hub
from mt_photos_ml.models.progress import Download, Meter


def test_a_download_reports_its_bytes_and_ends_with_all_of_them(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "CALLBACK_SECONDS", 0.0)
    reports: list[Download] = []
    Hub(tmp_path, server.endpoint, progress=reports.append).fetch(DETECTION)
    assert reports[-1] == Download(DETECTION, len(WEIGHTS), len(WEIGHTS), 0.0, server.endpoint)
    assert (reports[0].done, reports[0].total) == (0, len(WEIGHTS))
    assert all(0 < report.done <= report.total for report in reports[1:])


def test_the_speed_excludes_bytes_of_an_earlier_run_and_reports_are_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.5)
    reports: list[Download] = []
    staged = tmp_path / "a"
    staged.write_bytes(bytes(1_000_000))
    with caplog.at_level(logging.INFO):
        meter, began = Meter(VISUAL, [staged], 8_000_000, "a mirror", reports.append, logs=True), time.monotonic()
        staged.write_bytes(bytes(3_000_000))
        while time.monotonic() - began < 0.9:
            meter.tick()
        meter.finish()
    assert 3 <= len(reports) <= 5
    assert (reports[0].done, reports[0].total, reports[0].speed) == (1_000_000, 8_000_000, 0)
    assert (reports[1].done, reports[1].total) == (3_000_000, 8_000_000)
    assert 1_000_000 < reports[1].speed <= 8_000_000
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith(f"downloading {VISUAL}: 3.0 of 8.0 MB (38%), ")
    assert caplog.messages[1] == f"downloaded {VISUAL}: 8.0 MB in 1 s, from a mirror"


def test_a_report_shows_megabytes_share_and_speed() -> None:
    assert str(Download(VISUAL, 0, 0, 0.0, "")) == "0.0 of 0.0 MB (0%), 0.0 MB/s"
    assert str(Download(VISUAL, 9_440_000, 19_500_000, 1_949_999.0, "")) == "9.4 of 20 MB (48%), 1.9 MB/s"
