# SPDX-License-Identifier: AGPL-3.0-only
"""The state of models, and the progress of downloads for a callback and for the log."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..machine.files import size_of
from .catalog import ModelRef

log = logging.getLogger("mt_photos_ml")

LOG_SECONDS = 5.0
CALLBACK_SECONDS = 0.25


@dataclass(frozen=True)
class ModelState:
    """The state of a model. name: "ready", "in use", "downloading", "loading", "failed" or "not loaded". idle: seconds
    since the last use."""

    name: str
    idle: float | None = None
    memory_mb: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Download:
    """A download in progress. done, total: bytes. speed: mean bytes per second. source: the mirror's address."""

    ref: ModelRef
    done: int
    total: int
    speed: float
    source: str

    def __str__(self) -> str:
        percent = 100 * self.done / (self.total or 1)
        return f"{megabytes(self.done)} of {megabytes(self.total)} MB ({percent:.0f}%), {self.speed / 1e6:.1f} MB/s"


Progress = Callable[[Download], None]
"""Called at the start, every CALLBACK_SECONDS, and at the end with done == total."""


class Meter:
    """Reports the progress of a download by the size of its files in the staging folder."""

    def __init__(
        self, ref: ModelRef, staged: Sequence[Path], total: int, source: str, progress: Progress, logs: bool
    ) -> None:
        self._ref, self._staged, self._total, self._source = ref, staged, total, source
        self._progress, self._logs = progress, logs
        self._began = self._called = self._logged = time.monotonic()
        self._bytes_before = sum(map(size_of, staged))
        progress(Download(ref, self._bytes_before, max(self._bytes_before, total), 0.0, source))

    def tick(self) -> None:
        """Reports the progress if it is time to. Call it for every piece that was received."""
        now = time.monotonic()
        if now - self._called < CALLBACK_SECONDS:
            return
        self._called, done = now, sum(map(size_of, self._staged))
        speed = max(0, done - self._bytes_before) / (now - self._began)
        download = Download(self._ref, done, max(done, self._total), speed, self._source)
        self._progress(download)
        if self._logs and now - self._logged >= LOG_SECONDS:
            self._logged = now
            log.info("downloading %s: %s, from %s", self._ref, download, self._source)

    def finish(self) -> None:
        """Reports the end. Call it once all files are in place."""
        self._progress(Download(self._ref, self._total, self._total, 0.0, self._source))
        if self._logs:
            size, seconds = megabytes(self._total), time.monotonic() - self._began
            log.info("downloaded %s: %s MB in %.0f s, from %s", self._ref, size, seconds, self._source)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 9.5e6 else f"{count / 1e6:.0f}"
