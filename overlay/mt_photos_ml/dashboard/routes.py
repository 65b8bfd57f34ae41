# SPDX-License-Identifier: AGPL-3.0-only
"""The page for people and its API: status, models, metrics, benchmark, the OpenAPI document."""

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from .. import version
from ..api.errors import Conflict, NotThere
from ..api.replies import failure, reply
from ..machine.files import size_of
from ..models.choice import clip_vector_length, is_demo
from ..models.loader import Model, ModelKey
from ..models.prune import delete, find_unused
from .status import Status

log = logging.getLogger("mt_photos_ml")

_PAGE = [Path(__file__).parent / "page" / name for name in ("page.css", "page.js", "page.html")]
_SAFE = {"referrer-policy": "no-referrer", "x-content-type-options": "nosniff", "cache-control": "no-store"}
_PLACE = re.compile(r"(?:{{|/\*)(\w+)(?:}}|\*/)")  # a placeholder in page.html


class Dashboard:
    """The routes that MT Photos does not use."""

    def __init__(self, status: Status, bench: Callable[[], Awaitable[object]]) -> None:
        """bench: measures the service on a generated photo."""
        self._status, self._bench = status, bench
        self._background: set[asyncio.Task[None]] = set()
        self._bench_runs = asyncio.Lock()

    def routes(self) -> list[Route]:
        routes = [
            Route("/", self.page),
            Route("/openapi.json", self.openapi),
            Route("/api/status", self.status),
            Route("/api/models/unused", self.unused, methods=["GET", "DELETE"]),
            Route("/api/models/{task}/{type}/{action}", self.model, methods=["POST"]),
            Route("/api/bench", self.bench, methods=["POST"]),
        ]
        if self._status.engine.settings.metrics != "off":
            routes.append(Route("/metrics", self.metrics))
        return routes

    async def page(self, request: Request) -> Response:
        """The page in one file, with a policy that allows only its own script and style."""
        settings = self._status.engine.settings
        facts = {
            "version": version(),
            "address": str(request.base_url).removesuffix("/"),
            "length": clip_vector_length(settings) or "?",
            "demo": str(is_demo(settings)).lower(),
            "warned": str(bool(self._status.warnings)).lower(),
            "open": str(settings.open_to_all).lower(),
        }
        style, script, html = (path.read_text(encoding="utf-8") for path in _PAGE)
        said = {"style": style, "script": script} | {name: escape(str(fact)) for name, fact in facts.items()}
        policy = (
            f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src 'self' data: blob:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        filled = _PLACE.sub(lambda place: said[place[1]], html)  # in one pass, which leaves the inserted text as it is
        return HTMLResponse(filled, headers={"content-security-policy": policy, **_SAFE})

    async def openapi(self, request: Request) -> Response:
        document = orjson.loads(Path(__file__).with_name("openapi.json").read_bytes())
        document["info"]["version"] = version()
        return reply(document)

    async def metrics(self, request: Request) -> Response:
        text = self._status.metrics.text(self._status.gauges())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def status(self, request: Request) -> Response:
        return reply(await self._status.tell(), headers=_SAFE)

    async def model(self, request: Request) -> Response:
        """Pulls, loads or unloads a model. Answers at once; /api/status shows the progress of pull and load."""
        key, store = self._key(request), self._status.engine.store
        match request.path_params["action"]:
            case "pull":
                self._begin(store.pull(key))
            case "load":
                self._begin(store.load(key))
            case "unload":
                if not await store.unload(key):
                    raise Conflict(f"{key.ref} is in use")
            case other:
                raise NotThere(f"{other}: expected pull, load or unload")
        return reply({"result": "pass"})

    def _key(self, request: Request) -> ModelKey[Model]:
        asked = request.path_params["task"], request.path_params["type"]
        for role, key in self._status.engine.networks.by_role().items():
            if asked == (role.task, role.type) and role.task in self._status.engine.settings.tasks:
                return key
        raise NotThere("/".join(asked) + " is not a model in use")

    def _begin(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception as error:  # the status shows why the model is unavailable
                log.debug("an action of the page failed: %s", error)

        task = asyncio.create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def unused(self, request: Request) -> Response:
        """What `models prune` would delete, with sizes in MB; DELETE deletes it."""
        settings = self._status.engine.settings
        paths = await asyncio.to_thread(find_unused, settings)
        sizes = {str(path.relative_to(settings.cache_folder)): round(size_of(path) / 1e6) for path in paths}
        if request.method == "DELETE":
            try:
                await asyncio.to_thread(delete, paths)
            except OSError as error:
                return failure(503, f"the cache can't be written: {error.strerror}", retry_after=60)
            log.info("deleted %s", ", ".join(sizes) or "nothing")
        return reply({"result": sizes})

    async def bench(self, request: Request) -> Response:
        if self._bench_runs.locked():
            raise Conflict("a measurement is already running")
        async with self._bench_runs:
            return reply({"result": await self._bench()})


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
