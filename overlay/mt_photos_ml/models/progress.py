# SPDX-License-Identifier: AGPL-3.0-only
"""How far a download is: told to a callback, or to the log."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..files import size_of
from .catalog import ModelRef

log = logging.getLogger("mt_photos_ml")

LOG_SECONDS = 5.0
"""Between two lines of the log about one download."""
Progress = Callable[[ModelRef, int, int], None]
"""Called a few times a second with the bytes that are here and all bytes there will be."""


class Meter:
    """Goes by the size of the files in the staging folder."""

    def __init__(
        self, ref: ModelRef, staged: Sequence[Path], total: int, source: str, progress: Progress | None
    ) -> None:
        self._ref, self._staged, self._total, self._source, self._progress = ref, staged, total, source, progress
        self._interval = 0.25 if progress else LOG_SECONDS
        self._began = self._told = time.monotonic()
        self._told_bytes = self._here()

    def tick(self) -> None:
        """To be called with every piece that comes in."""
        elapsed = time.monotonic() - self._told
        if elapsed < self._interval:
            return
        here = self._here()
        total = max(here, self._total)
        if self._progress:
            self._progress(self._ref, here, total)
        else:
            speed = max(0, here - self._told_bytes) / elapsed / 1e6
            text = "downloading %s: %s of %s MB (%d%%), %.1f MB/s, from %s"
            log.info(text, self._ref, megabytes(here), megabytes(total), 100 * here / (total or 1), speed, self._source)
        self._told, self._told_bytes = self._told + elapsed, here

    def finish(self) -> None:
        """All is in place."""
        if self._progress:
            self._progress(self._ref, self._total, self._total)
        else:
            seconds = time.monotonic() - self._began
            log.info(
                "downloaded %s: %s MB in %.0f s, from %s", self._ref, megabytes(self._total), seconds, self._source
            )

    def _here(self) -> int:
        return sum(map(size_of, self._staged))


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 9.5e6 else f"{count / 1e6:.0f}"
