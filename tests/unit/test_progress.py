# SPDX-License-Identifier: AGPL-3.0-only
"""The progress of a download: a callback a few times a second, a log line every few seconds, and both at the end."""

import logging
from pathlib import Path
from types import SimpleNamespace

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
    now, reports, staged = [0.0], list[Download](), tmp_path / "a"
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    staged.write_bytes(bytes(1_000_000))
    with caplog.at_level(logging.INFO):
        meter = Meter(VISUAL, [staged], 8_000_000, "a mirror", reports.append, logs=True)
        staged.write_bytes(bytes(3_000_000))
        for now[0] in (0.2, 0.5, 0.7, 4.0, 5.0):
            meter.tick()
        meter.finish()
    done = [(report.done, report.speed) for report in reports]
    slower = [(3_000_000, speed) for speed in (4_000_000, 500_000, 400_000)]
    assert done == [(1_000_000, 0), *slower, (8_000_000, 0)]
    assert {report.total for report in reports} == {8_000_000}
    during, end = caplog.messages
    assert during.startswith(f"downloading {VISUAL}: 3.0 of 8.0 MB (38%), ")
    assert end == f"downloaded {VISUAL}: 8.0 MB in 5 s, from a mirror"


def test_a_report_shows_megabytes_share_and_speed() -> None:
    assert str(Download(VISUAL, 0, 0, 0.0, "")) == "0.0 of 0.0 MB (0%), 0.0 MB/s"
    assert str(Download(VISUAL, 9_440_000, 19_500_000, 1_949_999.0, "")) == "9.4 of 20 MB (48%), 1.9 MB/s"
