# SPDX-License-Identifier: AGPL-3.0-only
"""Upstream's own app behind our routes. It is imported at its first request, because few users need it and it takes two
seconds and 250 MB. Only its ASGI interface is used."""

import asyncio
import contextlib
import importlib
import logging
import os
import time
from collections.abc import AsyncIterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from uvicorn.lifespan.on import LifespanOn

    from ..settings import Settings

log = logging.getLogger("mt_photos_ml")

APP = ("immich_ml.upstream_main", "app")
"""The module and the name of upstream's app in the image."""

_RETRY_SECONDS = 30.0  # until an app that could not be started is tried again
_SHUTDOWN_SECONDS = 10.0


def is_there() -> bool:
    """Whether this is the image, which has upstream's app."""
    return find_spec(APP[0].partition(".")[0]) is not None


def is_served(settings: "Settings") -> bool:
    """Whether upstream's app is there and its API is not switched off."""
    return is_there() and settings.immich_api != "off"


class Upstream:
    """An ASGI app that is imported and started at its first request. Answers 503 if that fails."""

    def __init__(self, at_once: bool = False, app: tuple[str, str] = APP) -> None:
        """at_once: start it together with our own app, and let it load the models of MACHINE_LEARNING_PRELOAD__…;
        otherwise only our own app loads them. app: module and name."""
        self._at_once, self._app = at_once, app
        self._lifespan: LifespanOn | None = None
        self._starting = asyncio.Lock()
        self._not_before = 0.0

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Starts it if at_once; ends it with our own app."""
        starting = asyncio.create_task(self._start()) if self._at_once else None
        try:
            yield
        finally:
            if starting is not None:
                starting.cancel()
            if self._lifespan is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SHUTDOWN_SECONDS):  # the end of our own app waits for it
                        await self._lifespan.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        running = await self._start()
        if running is not None:
            await running.config.loaded_app({**scope, "state": dict(running.state)}, receive, send)
            return
        from .replies import failure  # not at the top, because it imports numpy

        why = "Immich's own API can't be started; the log of the service says why"
        await failure(503, why, retry_after=_RETRY_SECONDS)(scope, receive, send)

    async def _start(self) -> "LifespanOn | None":
        async with self._starting:
            if self._lifespan is None and time.monotonic() >= self._not_before:
                try:
                    lifespan = await asyncio.to_thread(self._imported)
                    await lifespan.startup()  # which logs why the start failed
                    if lifespan.should_exit:
                        raise RuntimeError("its start failed")
                    self._lifespan = lifespan
                except (Exception, SystemExit) as error:  # it may raise anything, and our own app must go on
                    self._not_before = time.monotonic() + _RETRY_SECONDS
                    log.error("Immich's own API can't be started: %s", error, exc_info=error)
        return self._lifespan

    def _imported(self) -> "LifespanOn":
        from uvicorn import Config
        from uvicorn.lifespan.on import LifespanOn

        if not self._at_once:
            for name in list(os.environ):
                if name.upper().startswith("MACHINE_LEARNING_PRELOAD__"):
                    del os.environ[name]  # read by us already; upstream would load these models a second time
        module, name = self._app
        app = getattr(importlib.import_module(module), name)
        return LifespanOn(Config(app, lifespan="on", http="h11", ws="none", log_config=None))
