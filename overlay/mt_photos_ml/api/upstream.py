# SPDX-License-Identifier: AGPL-3.0-only
"""Upstream's own app behind our routes: imported at the first request that is for it, since few ask for it and it takes
two seconds and 250 MB. Nothing of it is used but that it is an ASGI app."""

import asyncio
import contextlib
import importlib
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .replies import failure

log = logging.getLogger("mt_photos_ml")

APP = ("immich_ml.upstream_main", "app")
"""Where the image has upstream's app."""

_PAUSE = 30.0  # seconds before one that could not be started is tried again
_LAST_WORDS = 10.0  # seconds that it has to end


class Upstream:
    """An ASGI app that is imported and started when it is first asked. Where it can't be, it answers 503."""

    def __init__(self, at_once: bool = False, app: tuple[str, str] = APP) -> None:
        """at_once: start it with our own app, with the models that MACHINE_LEARNING_PRELOAD__… names for it; else these
        are ours to load. app: module and name."""
        self._at_once, self._name = at_once, app
        self._lifespan: _Lifespan | None = None
        self._starting = asyncio.Lock()
        self._not_before = 0.0

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """For as long as our own app runs."""
        starting = asyncio.create_task(self._start()) if self._at_once else None
        try:
            yield
        finally:
            if starting is not None:
                starting.cancel()
            if self._lifespan is not None:
                await self._lifespan.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        running = await self._start()
        if running is None:
            why = "Immich's own API can't be started; the log of the service says why"
            await failure(503, why, {"retry-after": f"{_PAUSE:.0f}"})(scope, receive, send)
        else:
            await running.app({**scope, "state": dict(running.state)}, receive, send)

    async def _start(self) -> "_Lifespan | None":
        async with self._starting:
            if self._lifespan is None and time.monotonic() >= self._not_before:
                try:
                    lifespan = _Lifespan(await asyncio.to_thread(self._imported))
                    await lifespan.startup()
                    self._lifespan = lifespan
                except (Exception, SystemExit) as error:  # it may be anything, and ours must not fall with it
                    self._not_before = time.monotonic() + _PAUSE
                    log.error("Immich's own API can't be started: %s", error, exc_info=error)
        return self._lifespan

    def _imported(self) -> ASGIApp:
        if not self._at_once:
            for name in [name for name in os.environ if name.upper().startswith("MACHINE_LEARNING_PRELOAD__")]:
                del os.environ[name]  # read by us already; upstream would load these models a second time
        module, name = self._name
        app: ASGIApp = getattr(importlib.import_module(module), name)
        return app


class _Lifespan:
    """Starts an ASGI app and ends it, by the lifespan protocol of ASGI, in a task of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        self._asked: asyncio.Queue[Message] = asyncio.Queue()
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Raises whatever keeps the app from starting."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        self._task = asyncio.create_task(self._run(scope))
        told = await self._ask("lifespan.startup")
        if told["type"] != "lifespan.startup.complete":
            raise RuntimeError(str(told.get("message", "")).strip().rpartition("\n")[2] or "its start failed")

    async def shutdown(self) -> None:
        """Within a bounded time: the end of our own app waits for it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await self._ask("lifespan.shutdown")

    async def _ask(self, kind: str) -> Message:
        await self._asked.put({"type": kind})
        return await self._told.get()

    async def _run(self, scope: Scope) -> None:
        try:
            await self.app(scope, self._asked.get, self._told.put)
        except (Exception, SystemExit) as error:
            log.debug("upstream's lifespan", exc_info=error)
            await self._told.put({"type": "lifespan.failed", "message": f"{type(error).__name__}: {error}"})
        await self._told.put({"type": "lifespan.failed", "message": "it ended"})  # for who still waits for its word
