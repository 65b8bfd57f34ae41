# SPDX-License-Identifier: AGPL-3.0-only
"""The routes in the process of the tests, so that a test can reach the engine and queues behind them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from demo.__main__ import environment as demo_environment
from mt_photos_ml.api.errors import HANDLERS
from mt_photos_ml.api.middleware.access_log import AccessLogMiddleware
from mt_photos_ml.api.middleware.lifecycle import Lifecycle
from mt_photos_ml.api.routes import Routes
from mt_photos_ml.api.trace import RequestTrace
from mt_photos_ml.api.uploads import Uploads
from mt_photos_ml.dashboard.metrics import Metrics
from mt_photos_ml.dashboard.routes import Dashboard
from mt_photos_ml.dashboard.status import Status
from mt_photos_ml.engine import Engine
from mt_photos_ml.settings import Settings


class Inside:
    """A service with the demo's models and without a key."""

    def __init__(self, cache: Path, warnings: Iterable[str] = (), **settings: Any) -> None:
        """settings: by the names of their environment variables."""
        given = {"PREPARE_MODELS": False, "MACHINE_LEARNING_REQUEST_THREADS": 1, **demo_environment(cache), **settings}
        self.benches = 0
        self.engine, self.metrics = Engine(Settings(**given)), Metrics()
        self.uploads, self.traces = Uploads(2_000_000 * self.engine.settings.max_upload_mb), list[RequestTrace]()
        self.lifecycle = Lifecycle()
        self.routes = Routes(self.engine, self.uploads, self.lifecycle, tuple(warnings))
        self.status = Status(self.engine, self.uploads, self.metrics, tuple(warnings))
        self.dashboard = Dashboard(self.status, self.bench)
        self.app = Starlette(routes=[*self.routes.all(), *self.dashboard.routes()], exception_handlers=HANDLERS)
        self.app.add_middleware(AccessLogMiddleware, "inside", [self.metrics.observe, self.traces.append])

    @property
    def waiting(self) -> dict[str, int]:
        """How many photos and texts are queued or in progress."""
        return {name: queue.present for name, queue in self.engine.queues.items()}

    async def bench(self) -> object:
        self.benches += 1
        return {"benches": self.benches}

    @property
    def trace(self) -> RequestTrace:
        """The trace of the last request that was answered."""
        return self.traces[-1]


@contextlib.asynccontextmanager
async def asking(inside: Inside) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service, whose engine is closed at the end."""
    transport = httpx.ASGITransport(inside.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://inside:8060") as client:
        yield client
    inside.engine.close()


async def eventually(true: Callable[[], bool]) -> None:
    """Waits until `true` holds, for a minute at most."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)
