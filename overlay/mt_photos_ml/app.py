# SPDX-License-Identifier: AGPL-3.0-only
"""Puts the service together."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware

from .api.access import AccessLog
from .api.auth import KeyRequired
from .api.limits import BodyLimit
from .api.routes import Routes
from .models import catalog
from .models.store import Maker, Slots, Source, Store
from .runtime import Runtime
from .settings import Settings
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
    slots = Slots(inferences_at_once(settings))
    store = Store(runtime, source, MAKERS, slots, settings.model_ttl)
    routes = Routes(settings, store, slots, start_afresh)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(store.drop_when_idle()),
            asyncio.create_task(store.preload(_preloaded(settings))),
        ]
        yield
        for task in tasks:
            task.cancel()
        routes.close()

    middleware = [Middleware(AccessLog), Middleware(BodyLimit, settings.max_upload_mb * 1_000_000)]
    if not settings.open_to_all:
        middleware.insert(1, Middleware(KeyRequired, settings.api_auth_key))
    app = Starlette(routes=routes.all(), middleware=middleware, lifespan=lifespan)
    app.router.redirect_slashes = False
    return app


def threads_an_inference(settings: Settings) -> int:
    """What is set, else the cores up to four: beyond that a network of these sizes gains little by one more."""
    return settings.model_intra_op_threads or min(_cores(), 4)


def inferences_at_once(settings: Settings) -> int:
    """So many that together they fill the cores."""
    return max(1, _cores() // threads_an_inference(settings))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _preloaded(settings: Settings) -> list[catalog.Part]:
    asked = {
        (catalog.CLIP, "visual"): settings.preload_clip_visual,
        (catalog.CLIP, "textual"): settings.preload_clip_textual,
        (catalog.FACES, "detection"): settings.preload_face_detection,
        (catalog.FACES, "recognition"): settings.preload_face_recognition,
        (catalog.OCR, "detection"): settings.preload_ocr_detection,
        (catalog.OCR, "recognition"): settings.preload_ocr_recognition,
    }
    return [part for parts in catalog.configured(settings).values() for part in parts if asked[part.folder, part.kind]]
