# SPDX-License-Identifier: AGPL-3.0-only
"""How the service is: for the page, and the gauges of the metrics."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import version
from ..api.middleware.body_limit import Queue
from ..api.uploads import Bodies
from ..engine import Engine
from ..machine import memory
from ..machine.files import size_of
from ..models.catalog import Network
from ..models.choice import clip_vector_length
from ..models.sources import file_in_wheel
from ..runtime.prepared.models import FOLDER
from ..settings import TASKS, Settings
from .metrics import Metrics, Sample


@dataclass(frozen=True)
class Status:
    """Of one service; everything that it is put together of and that has something to tell."""

    engine: Engine
    metrics: Metrics
    warnings: Sequence[str]
    photos: Queue
    texts: Queue
    bodies: Bodies

    @property
    def settings(self) -> Settings:
        return self.engine.settings

    async def tell(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        settings, metrics = self.settings, self.metrics
        return {
            "version": version(),
            "demo": settings.demo,
            "warnings": list(self.warnings),
            "tasks": {task: task in settings.tasks for task in TASKS},
            "clip_vector_length": clip_vector_length(settings),
            "runtime": await asyncio.to_thread(self.engine.runtime.describe),
            "refused": list(self.engine.runtime.refused),
            "uptime_s": round(time.time() - metrics.started),
            "memory": {"anonymous_mb": round(memory.anonymous_mb()), "mapped_mb": round(memory.mapped_mb())},
            "photos": {"total": metrics.photos, "per_minute": metrics.per_minute()},
            "mean_ms": metrics.mean_ms(),
            "waiting": {"photos": self.photos.present, "texts": self.texts.present, "uploads": self.bodies.present},
            "errors": [asdict(error) for error in metrics.errors],
            "models": await asyncio.to_thread(lambda: list(self._models())),
        }

    def _models(self) -> Iterator[dict[str, Any]]:
        for network, key in self.engine.models.by_network().items():
            if network.switch in self.settings.tasks:
                yield self._model(network, key)

    def _model(self, network: Network, key: Any) -> dict[str, Any]:
        ref, folder = key.ref, key.ref.path(self.settings.cache_folder).parent
        state = self.engine.store.state(ref)
        is_there = not ref.missing(self.settings.cache_folder) or file_in_wheel(ref) is not None
        name = "missing" if state.name == "not loaded" and not is_there else state.name
        download = self.engine.downloads.get(ref)
        return {
            "task": network.switch,
            "type": ref.type,
            "name": ref.name,
            "state": name,
            "runs_on": self.engine.runtime.runs_on(ref.path(self.settings.cache_folder)),
            "idle_s": None if state.idle is None else round(state.idle),
            "memory_mb": None if state.memory_mb is None else round(state.memory_mb),
            "error": state.error,
            "disk_mb": round(size_of(folder) / 1e6),
            "prepared": (folder / FOLDER).is_dir(),
            "variant": ref.variant,
            "download": asdict(download) | {"ref": str(ref)} if download and name == "downloading" else None,
        }

    def gauges(self) -> Iterator[tuple[str, str, list[Sample]]]:
        """For the metrics: name, what it is, samples."""
        waiting = {"photos": self.photos.present, "texts": self.texts.present, "uploads": self.bodies.present}
        yield (
            "waiting",
            "Requests that wait, by what for.",
            [("", {"queue": name}, count) for name, count in waiting.items()],
        )
        yield "upload_bytes", "Bytes of uploads that are held.", [("", {}, self.bodies.held)]
        yield "model_loaded", "Models in memory.", [("", {"model": name}, 1) for name in self.engine.store.loaded]
        kinds = {"anonymous": memory.anonymous_mb(), "mapped": memory.mapped_mb()}
        yield (
            "memory_bytes",
            "Resident memory of the process.",
            [("", {"kind": kind}, round(megabytes * 1e6)) for kind, megabytes in kinds.items()],
        )
        yield "start_time_seconds", "When the process began, in seconds since 1970.", [("", {}, self.metrics.started)]
        yield "info", "The version.", [("", {"version": version()}, 1)]
