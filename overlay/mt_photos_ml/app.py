# SPDX-License-Identifier: AGPL-3.0-only
"""Puts the service together."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

from starlette.applications import Starlette

from . import version
from .api.access import AccessLog
from .api.activity import Active
from .api.auth import KeyRequired
from .api.limits import BodyLimit
from .api.routes import Routes
from .models import catalog
from .models.store import Maker, Slots, Source, Store
from .runtime import Runtime
from .settings import DEFAULT_KEY, Settings
from .tasks import clip, faces, ocr

log = logging.getLogger("mt_photos_ml")

MAKERS: dict[tuple[str, str], Maker] = {
    (catalog.CLIP, "visual"): clip.Visual.load,
    (catalog.CLIP, "textual"): clip.Textual.load,
    (catalog.FACES, "detection"): faces.Detector.load,
    (catalog.FACES, "recognition"): faces.Recogniser.load,
    (catalog.OCR, "detection"): ocr.Detector.load,
    (catalog.OCR, "recognition"): ocr.Recogniser.load,
}


def create_app(
    settings: Settings, runtime: Runtime, source: Source, start_afresh: Callable[[], None] = lambda: None
) -> Starlette:
    """The whole service on sessions of this runtime and files of this source.

    start_afresh: what /restart_v2 does once it has answered. Raises SettingsError where the models don't fit.
    """
    catalog.check(settings)
    catalog.check_preloaded(settings)
    slots = Slots(_cores(), threads_an_inference(settings))
    store = Store(runtime, source, MAKERS, slots, settings.model_ttl, catalog.preloaded(settings))
    routes = Routes(settings, store, slots, start_afresh)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(store.look_after()),
            asyncio.create_task(store.preload()),
        ]
        yield
        for task in tasks:
            task.cancel()
        runtime.close()
        routes.close()

    app = Starlette(routes=routes.all(), lifespan=lifespan)
    app.router.redirect_slashes = False
    _guard(app, settings)
    return app


def extend(
    app: Starlette,
    settings: Settings,
    runtime: Runtime,
    source: Source,
    *,
    activity: Callable[[], contextlib.AbstractContextManager[None]],
    start_afresh: Callable[[], None],
    started: Callable[[asyncio.AbstractEventLoop], None],
    release: Callable[[], Awaitable[None]],
) -> None:
    """Adds our routes and guards to upstream's app, whose lifespan and whose own routes stay.

    activity: a context that makes upstream count a request. started: is told the loop before the first request.
    release: empties upstream's own cache of models. Idle models are not dropped here: upstream ends its worker when
    nothing has been asked for a while, and all memory comes back.
    """
    catalog.check(settings)
    slots = Slots(_cores(), threads_an_inference(settings))
    store = Store(runtime, source, MAKERS, slots, 0, catalog.preloaded(settings))
    routes = Routes(settings, store, slots, start_afresh, release)
    own = {route.path for route in routes.all()} | ({"/predict"} if settings.immich_api == "off" else set())
    app.router.routes[:] = [*routes.all(), *(r for r in app.router.routes if getattr(r, "path", None) not in own)]
    upstreams = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Any]:
        started(asyncio.get_running_loop())
        announce(settings, "the port of the container")
        async with upstreams(app) as state:
            tasks = [asyncio.create_task(store.look_after()), asyncio.create_task(store.preload())]
            yield state
            for task in tasks:
                task.cancel()
        runtime.close()
        routes.close()

    app.router.lifespan_context = lifespan
    app.add_middleware(Active, activity)
    _guard(app, settings, {("POST", "/predict")} if settings.immich_api == "open" else set())


def _guard(app: Starlette, settings: Settings, also_open: Collection[tuple[str, str]] = ()) -> None:
    """What every request passes, from the inside out."""
    app.add_middleware(BodyLimit, settings.max_upload_mb * 1_000_000)
    if not settings.open_to_all:
        app.add_middleware(KeyRequired, settings.api_auth_key, also_open)
    app.add_middleware(AccessLog)


def threads_an_inference(settings: Settings) -> int:
    """What is set, else the cores up to four: beyond that a network of these sizes gains little by one more."""
    return settings.model_intra_op_threads or min(_cores(), 4)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def announce(settings: Settings, where: str) -> None:
    """Says in the log what a person needs to know at the start. where: what the service listens on."""
    key = "of your own"
    if settings.open_to_all:
        key = "none, the API is open to all who can reach it"
    elif settings.api_auth_key == DEFAULT_KEY:
        key = "the default one, which everybody knows: set API_AUTH_KEY"
    log.info("mt-photos-ml %s on %s, key: %s", version(), where, key)
    for task, parts in catalog.configured(settings).items():
        names = dict.fromkeys(part.name for part in parts)
        length = f", vectors of {catalog.clip_vector_length(settings) or '?'} numbers" if task == "clip" else ""
        log.info("%s: %s%s", task, ", ".join(names), length)
    if settings.demo:
        log.warning("this is the demo: it knows colours and drawn faces only")
