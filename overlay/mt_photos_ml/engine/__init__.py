# SPDX-License-Identifier: AGPL-3.0-only
"""What recognises, without HTTP: devices, models and where they come from, put together by the settings."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from ..models.catalog import ModelRef
from ..models.choice import preloaded
from ..models.hub import Hub
from ..models.loader import Loader
from ..models.progress import Download
from ..models.store import Store
from ..runtime import Runtime
from ..runtime.devices import Devices
from ..runtime.npu import NpuRuntime, find_npu
from ..runtime.ort import OrtRuntime
from ..runtime.prepared.models import PreparedModels
from ..runtime.scheduler import CpuScheduler
from ..settings import Settings
from ..tasks.networks import Models


@dataclass(frozen=True)
class Engine:
    """downloads: how far those are that were begun, the last word of each."""

    settings: Settings
    runtime: Runtime
    store: Store
    models: Models
    scheduler: CpuScheduler
    downloads: dict[ModelRef, Download]

    @classmethod
    def of(cls, settings: Settings, restart: Callable[[], None] = lambda: None) -> Self:
        """By the settings, which are checked already. restart: has the process end for another to take its place."""
        prepared = PreparedModels(settings.cache_folder) if settings.prepare_models else None
        threads = threads_of_inference(settings)
        runtime: Runtime = OrtRuntime(threads, prepared, Devices.of(settings))
        if npu := find_npu(settings):
            runtime = NpuRuntime(npu, runtime)
        downloads: dict[ModelRef, Download] = {}

        def note(download: Download) -> None:
            downloads[download.ref] = download

        def progress(ref: ModelRef) -> str:
            return f"downloaded: {downloads[ref]}" if ref in downloads else "downloaded"

        hub = Hub(settings.cache_folder, settings.hf_endpoint, npu_file=npu.file if npu else None, progress=note)
        scheduler, models, at_start = CpuScheduler(cores(), threads), Models.of(settings), preloaded(settings)
        kept = [key for key in models.all() if key.ref in at_start]
        loader = Loader(runtime, hub, scheduler)
        store = Store(runtime, loader, settings.model_ttl, kept, restart, progress)
        return cls(settings, runtime, store, models, scheduler, downloads)


def threads_of_inference(settings: Settings) -> int:
    """What is set, else the cores up to four: beyond that a network of these sizes gains little by one more."""
    return settings.model_intra_op_threads or min(cores(), 4)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
