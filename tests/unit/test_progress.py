# SPDX-License-Identifier: AGPL-3.0-only
"""How far a download is, is told a few times a second, and every five seconds to the log."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_files import VISUAL
from mt_photos_ml.models import progress
from mt_photos_ml.models.progress import Download, Meter, megabytes


class Clock:
    """Seconds by time.monotonic(), which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_it_is_told_four_times_a_second_how_much_is_here_and_how_fast_it_comes(
    time: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Download] = []
    staged = [tmp_path / "a", tmp_path / "b"]
    staged[0].write_bytes(bytes(1000))  # what an earlier run left
    meter = Meter(VISUAL, staged, 7000, "a mirror", told.append, logs=False)
    staged[1].write_bytes(bytes(4000))
    for now in (1000.125, 1000.25, 1000.375, 1000.5):
        time.now = now
        meter.tick()
    staged[1].write_bytes(bytes(9000))
    time.now = 1008.0
    meter.tick()
    (tmp_path / "a").unlink()
    (tmp_path / "b").unlink()
    time.now = 1010.0
    with caplog.at_level(logging.INFO):
        meter.tick()
        meter.finish()
    assert told == [
        Download(VISUAL, 5000, 7000, 16000.0, "a mirror"),
        Download(VISUAL, 5000, 7000, 8000.0, "a mirror"),
        Download(VISUAL, 10000, 10000, 1125.0, "a mirror"),  # more came than was said
        Download(VISUAL, 0, 7000, 0.0, "a mirror"),
        Download(VISUAL, 7000, 7000, 0.0, "a mirror"),
    ]
    assert caplog.messages == []


def test_the_log_says_it_every_five_seconds_and_at_the_end(
    time: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (staged := tmp_path / "a").touch()
    meter = Meter(VISUAL, [staged], 10_000_000, "a mirror", lambda download: None, logs=True)
    staged.write_bytes(bytes(2_500_000))
    with caplog.at_level(logging.INFO):
        for now in (1004.5, 1005.0, 1009.5, 1010.0):
            time.now = now
            meter.tick()
        time.now = 1012.0
        meter.finish()
    assert caplog.messages == [
        f"downloading {VISUAL}: 2.5 of 10 MB (25%), 0.5 MB/s, from a mirror",
        f"downloading {VISUAL}: 2.5 of 10 MB (25%), 0.2 MB/s, from a mirror",
        f"downloaded {VISUAL}: 10 MB in 12 s, from a mirror",
    ]


@pytest.mark.parametrize(
    ("done", "total", "speed", "words"),
    [
        (0, 0, 0.0, "0.0 of 0.0 MB (0%), 0.0 MB/s"),  # nobody knows how much it is
        (2_000_000, 4_000_000, 1_949_999.0, "2.0 of 4.0 MB (50%), 1.9 MB/s"),
        (20_000_000, 20_000_000, 1_950_001.0, "20 of 20 MB (100%), 2.0 MB/s"),
    ],
)
def test_how_far_it_is_is_said_in_words(done: int, total: int, speed: float, words: str) -> None:
    assert str(Download(VISUAL, done, total, speed, "")) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0.0"), (9_449_999, "9.4"), (9_450_001, "9.5"), (9_500_000, "10"), (123_456_789, "123")]
)
def test_megabytes_have_a_decimal_place_where_they_are_few(count: int, words: str) -> None:
    assert megabytes(count) == words
