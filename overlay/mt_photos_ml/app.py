# SPDX-License-Identifier: AGPL-3.0-only
"""Puts the service together."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from . import version
from .api.access_log import AccessLogMiddleware
from .api.auth import ApiKeyMiddleware
from .api.console import Console
from .api.errors import HANDLERS
from .api.limits import BodyLimitMiddleware
from .api.metrics import Metrics
from .api.routes import Routes
from .api.status import Status
from .benchmark import measure
from .engine import Engine
from .lifecycle import Lifecycle, LifecycleMiddleware
from .models.selection import clip_vector_length, in_use
from .settings import Settings

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
    engine, metrics = Engine.of(settings, lifecycle.restart), Metrics()
    warnings = [settings.key_warning] if settings.key_warning and is_exposed else []
    routes = Routes(engine, lifecycle.restart, warnings)
    status = Status(engine, metrics, warnings, routes.photos, routes.texts, routes.bodies)
    console = Console(status, lambda: measure(engine))
    store = engine.store

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(store.run_maintenance()), asyncio.create_task(store.preload())]
        async with fallback.lifespan() if fallback is not None else contextlib.nullcontext():
            with lifecycle.signals():
                yield
        for task in tasks:
            task.cancel()
        engine.runtime.close()
        routes.close()

    app = Starlette(
        routes=[*routes.all(), *console.routes()],
        lifespan=lifespan,
        exception_handlers=HANDLERS,
    )
    app.router.redirect_slashes = False
    if fallback is not None:
        app.router.default = fallback
    app.add_middleware(BodyLimitMiddleware, settings.max_upload_mb * 1_000_000)
    if not settings.open_to_all:
        also_open = {("POST", "/predict")} if fallback is not None and settings.immich_api == "open" else set()
        also_open |= {("GET", "/metrics")} if settings.metrics == "open" else set()
        app.add_middleware(ApiKeyMiddleware, settings.api_auth_key, also_open)
    app.add_middleware(LifecycleMiddleware, lifecycle)
    app.add_middleware(AccessLogMiddleware, metrics)
    return app


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
