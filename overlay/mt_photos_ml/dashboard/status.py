# SPDX-License-Identifier: AGPL-3.0-only
"""The status of the service, for the page and for the metrics' gauges."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from .. import version
from ..api.uploads import Uploads
from ..engine import Engine
from ..machine import memory
from ..models.choice import clip_vector_length, is_demo
from ..settings.values import TASKS
from .metrics import Metrics, Sample


@dataclass(frozen=True)
class Status:
    """The status of one service."""

    engine: Engine
    uploads: Uploads
    metrics: Metrics
    warnings: Sequence[str]

    async def tell(self) -> dict[str, object]:
        """The whole status, for JSON."""
        settings, metrics = self.engine.settings, self.metrics
        engine = await asyncio.to_thread(self.engine.status)
        return {
            "version": version(),
            "instance": settings.instance_name,
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
        return {name: queue.present for name, queue in self.engine.queues.items()} | {"uploads": self.uploads.coming}

    def gauges(self) -> Iterator[tuple[str, str, Sequence[Sample]]]:
        """Gauges of the metrics: name, description, samples."""
        queues, uploads = self.engine.queues, self.uploads
        waiting = [("", {"queue": name}, count) for name, count in self._waiting().items()]
        slots = [("", {"queue": name}, queue.threads) for name, queue in queues.items()]
        most = {name: queue.most for name, queue in queues.items()} | {"uploads": uploads.max_uploads}
        limits = [("", {"queue": name}, limit) for name, limit in most.items()]
        loaded = [("", {"model": name}, 1) for name in self.engine.store.loaded]
        megabytes = {"anonymous": memory.anonymous_mb(), "mapped": memory.mapped_mb()}
        resident = [("", {"kind": kind}, round(value * 1e6)) for kind, value in megabytes.items()]
        yield "waiting", "Requests that wait or are processed, by queue.", waiting
        yield "slots", "The most requests that are processed at once, by queue.", slots
        yield "waiting_limit", "The most requests that are accepted, by queue; one more gets 503.", limits
        yield "upload_bytes", "Bytes of uploads in memory.", [("", {}, uploads.held_bytes)]
        yield "upload_bytes_limit", "The most bytes of uploads in memory.", [("", {}, uploads.max_bytes)]
        yield "model_loaded", "Models in memory.", loaded
        yield "memory_bytes", "Resident memory of the process.", resident
        yield "start_time_seconds", "When the process started, in seconds since 1970.", [("", {}, self.metrics.started)]
        named = {"version": version(), "name": self.engine.settings.instance_name}
        yield "info", "The version and the name of this instance.", [("", named, 1)]
