# SPDX-License-Identifier: AGPL-3.0-only
"""The routes in the process of the tests, with all that is behind them within reach."""

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
from mt_photos_ml.api.record import RequestRecord
from mt_photos_ml.api.routes import Routes
from mt_photos_ml.dashboard.metrics import Metrics
from mt_photos_ml.dashboard.routes import Console
from mt_photos_ml.dashboard.status import Status
from mt_photos_ml.engine import Engine
from mt_photos_ml.settings import Settings


class _Noting(Metrics):
    """Keeps the records, too."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[RequestRecord] = []

    def observe(self, record: RequestRecord) -> None:
        self.records.append(record)
        super().observe(record)


class Inside:
    """A service with the demo's models, which nobody needs a key for."""

    def __init__(self, cache: Path, warnings: Iterable[str] = (), **settings: Any) -> None:
        """settings: by the names of their variables."""
        given = {"PREPARE_MODELS": False, "MACHINE_LEARNING_REQUEST_THREADS": 1, **demo_environment(cache), **settings}
        self.restarts = self.benches = 0
        self.engine, self.metrics = Engine.of(Settings(**given)), _Noting()
        self.routes = Routes(self.engine, self._restart, tuple(warnings))
        queues = self.routes.photos, self.routes.texts, self.routes.bodies
        self.status = Status(self.engine, self.metrics, tuple(warnings), *queues)
        self.console = Console(self.status, self.bench)
        self.app = Starlette(routes=[*self.routes.all(), *self.console.routes()], exception_handlers=HANDLERS)
        self.app.add_middleware(AccessLogMiddleware, self.metrics)

    def _restart(self) -> None:
        self.restarts += 1

    async def bench(self) -> object:
        self.benches += 1
        return {"benches": self.benches}

    @property
    def record(self) -> RequestRecord:
        """Of the last request that was answered."""
        return self.metrics.records[-1]

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://inside:8060")

    def close(self) -> None:
        self.engine.runtime.close()
        self.routes.close()


@contextlib.asynccontextmanager
async def asking(inside: Inside) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it, for as long as it lasts."""
    async with inside.client() as client:
        yield client
    inside.close()


async def eventually(true: Callable[[], bool]) -> None:
    """Waits for it."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)
