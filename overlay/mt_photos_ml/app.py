# SPDX-License-Identifier: AGPL-3.0-only
"""Puts the service together."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from . import version
from .api.access_log import AccessLogMiddleware
from .api.auth import ApiKeyMiddleware
from .api.errors import HANDLERS
from .api.limits import BodyLimitMiddleware
from .api.routes import Routes
from .lifecycle import Lifecycle, LifecycleMiddleware
from .models.hub import Hub
from .models.loader import Loader
from .models.selection import clip_vector_length, in_use, preloaded
from .models.store import Store
from .runtime import Runtime
from .runtime.devices import Devices
from .runtime.npu import NpuRuntime, find_npu
from .runtime.ort import OrtRuntime
from .runtime.prepared import PreparedModels
from .runtime.scheduler import CpuScheduler
from .settings import Settings
from .tasks.models import Models

log = logging.getLogger("mt_photos_ml")


class Fallback(Protocol):
    """An app that is asked for what is none of our routes."""

    def lifespan(self) -> AbstractAsyncContextManager[None]:
        """For as long as our own app runs."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def from_settings(
    settings: Settings, lifecycle: Lifecycle, fallback: Fallback | None = None, *, is_exposed: bool = True
) -> Starlette:
    """The whole service with the devices, the models and the mirrors of these settings, which are checked already.

    is_exposed: whether other machines can reach it.
    """
    prepared = PreparedModels(settings.cache_folder) if settings.prepare_models else None
    runtime: Runtime = OrtRuntime(threads_of_inference(settings), prepared, Devices.of(settings))
    if npu := find_npu(settings):
        runtime = NpuRuntime(npu, runtime)
    hub = Hub(settings.cache_folder, settings.hf_endpoint, npu_file=npu.file if npu else None)
    scheduler, models = CpuScheduler(_cores(), threads_of_inference(settings)), Models.of(settings)
    at_start = preloaded(settings)
    kept = [key for key in models.all() if key.ref in at_start]
    loader = Loader(runtime, hub, scheduler)
    store = Store(runtime, loader, settings.model_ttl, kept, lifecycle.restart)
    warnings = [settings.key_warning] if settings.key_warning and is_exposed else []
    routes = Routes(settings, store, models, scheduler, lifecycle.restart, warnings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(store.run_maintenance()), asyncio.create_task(store.preload())]
        async with fallback.lifespan() if fallback is not None else contextlib.nullcontext():
            with lifecycle.signals():
                yield
        for task in tasks:
            task.cancel()
        runtime.close()
        routes.close()

    app = Starlette(routes=routes.all(), lifespan=lifespan, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False
    if fallback is not None:
        app.router.default = fallback
    app.add_middleware(BodyLimitMiddleware, settings.max_upload_mb * 1_000_000)
    if not settings.open_to_all:
        predict = {("POST", "/predict")} if fallback is not None and settings.immich_api == "open" else set()
        app.add_middleware(ApiKeyMiddleware, settings.api_auth_key, predict)
    app.add_middleware(LifecycleMiddleware, lifecycle)
    app.add_middleware(AccessLogMiddleware)
    return app


def threads_of_inference(settings: Settings) -> int:
    """What is set, else the cores up to four: beyond that a network of these sizes gains little by one more."""
    return settings.model_intra_op_threads or min(_cores(), 4)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def announce(settings: Settings, where: str, *, is_exposed: bool = True) -> None:
    """Says in the log what a person needs to know at the start. where: what the service listens on."""
    log.info("mt-photos-ml %s on %s", version(), where)
    if settings.key_warning and is_exposed:
        log.warning("%s", settings.key_warning)
    refs = in_use(settings)
    for task in dict.fromkeys(network.switch for network in refs):
        names = dict.fromkeys(ref.name for network, ref in refs.items() if network.switch == task)
        length = f", vectors of {clip_vector_length(settings) or '?'} numbers" if task == "clip" else ""
        log.info("%s: %s%s", task, ", ".join(names), length)
    if settings.demo:
        log.warning("this is the demo: it knows colours and drawn faces only")
