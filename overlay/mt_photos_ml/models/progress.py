# SPDX-License-Identifier: AGPL-3.0-only
"""How far downloads are: told to a callback, and now and then to the log."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..machine.files import size_of
from .catalog import ModelRef

log = logging.getLogger("mt_photos_ml")

LOG_SECONDS = 5.0
"""Between two lines of the log about one download."""
_TELL_SECONDS = 0.25


@dataclass(frozen=True)
class Download:
    """One under way. done, total: bytes. speed: bytes a second since it began. source: where it comes from."""

    ref: ModelRef
    done: int
    total: int
    speed: float
    source: str

    def __str__(self) -> str:
        share = 100 * self.done / (self.total or 1)
        return f"{megabytes(self.done)} of {megabytes(self.total)} MB ({share:.0f}%), {self.speed / 1e6:.1f} MB/s"


Progress = Callable[[Download], None]
"""Called a few times a second, and at the end with all that there is."""


class Meter:
    """Goes by the size of the files in the staging folder."""

    def __init__(
        self, ref: ModelRef, staged: Sequence[Path], total: int, source: str, progress: Progress, logs: bool
    ) -> None:
        self._ref, self._staged, self._total, self._source, self._progress = ref, staged, total, source, progress
        self._logs = logs
        self._began = self._told = self._logged = time.monotonic()
        self._began_with = self._here()

    def tick(self) -> None:
        """To be called with every piece that comes in."""
        now = time.monotonic()
        if now - self._told < _TELL_SECONDS:
            return
        self._told = now
        here = self._here()
        speed = max(0, here - self._began_with) / (now - self._began)
        download = Download(self._ref, here, max(here, self._total), speed, self._source)
        self._progress(download)
        if self._logs and now - self._logged >= LOG_SECONDS:
            self._logged = now
            log.info("downloading %s: %s, from %s", self._ref, download, self._source)

    def finish(self) -> None:
        """All is in place."""
        self._progress(Download(self._ref, self._total, self._total, 0.0, self._source))
        if self._logs:
            seconds = time.monotonic() - self._began
            log.info(
                "downloaded %s: %s MB in %.0f s, from %s", self._ref, megabytes(self._total), seconds, self._source
            )

    def _here(self) -> int:
        return sum(map(size_of, self._staged))


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 9.5e6 else f"{count / 1e6:.0f}"
