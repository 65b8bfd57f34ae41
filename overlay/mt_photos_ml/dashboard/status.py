# SPDX-License-Identifier: AGPL-3.0-only
"""How the service is: for the page, and the gauges of the metrics."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from .. import version
from ..api.uploads import Uploads
from ..engine import Engine
from ..machine import memory
from ..models.choice import clip_vector_length, is_demo
from ..settings import TASKS
from .metrics import Metrics, Sample


@dataclass(frozen=True)
class Status:
    """Of one service."""

    engine: Engine
    uploads: Uploads
    metrics: Metrics
    warnings: Sequence[str]

    async def tell(self) -> dict[str, object]:
        """All of it, as JSON has it."""
        settings, metrics = self.engine.settings, self.metrics
        engine = await asyncio.to_thread(self.engine.status)
        return {
            "version": version(),
            "demo": is_demo(settings),
            "warnings": list(self.warnings),
            "tasks": {task: task in settings.tasks for task in TASKS},
            "clip_vector_length": clip_vector_length(settings),
            **asdict(engine),
            "waiting": self._waiting(),
            "uptime_s": round(time.time() - metrics.started),
            "memory": {"anonymous_mb": round(memory.anonymous_mb()), "mapped_mb": round(memory.mapped_mb())},
            "photos": {"total": metrics.photos, "per_minute": metrics.per_minute()},
            "mean_ms": metrics.mean_ms(),
            "errors": list(metrics.errors),
        }

    def _waiting(self) -> dict[str, int]:
        return {**self.engine.waiting, "uploads": self.uploads.coming}

    def gauges(self) -> Iterator[tuple[str, str, Sequence[Sample]]]:
        """For the metrics: name, what it is, samples."""
        waiting = [("", {"queue": name}, count) for name, count in self._waiting().items()]
        loaded = [("", {"model": name}, 1) for name in self.engine.store.loaded]
        megabytes = {"anonymous": memory.anonymous_mb(), "mapped": memory.mapped_mb()}
        resident = [("", {"kind": kind}, round(value * 1e6)) for kind, value in megabytes.items()]
        yield "waiting", "Requests that wait, by what for.", waiting
        yield "upload_bytes", "Bytes of uploads that are held.", [("", {}, self.uploads.held_bytes)]
        yield "model_loaded", "Models in memory.", loaded
        yield "memory_bytes", "Resident memory of the process.", resident
        yield "start_time_seconds", "When the process began, in seconds since 1970.", [("", {}, self.metrics.started)]
        yield "info", "The version.", [("", {"version": version()}, 1)]
