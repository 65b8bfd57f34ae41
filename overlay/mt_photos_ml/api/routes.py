# SPDX-License-Identifier: AGPL-3.0-only
"""The routes of MT Photos: each takes the upload, awaits the engine and shapes the reply."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .. import version
from ..engine import Engine
from ..engine.trace import Trace
from ..models.choice import clip_vector_length, is_demo
from . import replies
from .disconnect import unless_disconnected
from .forms import read_file, read_text
from .middleware.lifecycle import Lifecycle
from .trace import trace_of
from .uploads import Uploads

log = logging.getLogger("mt_photos_ml")

T = TypeVar("T")


class Routes:
    """The routes of one service."""

    def __init__(self, engine: Engine, uploads: Uploads, lifecycle: Lifecycle, warnings: Sequence[str] = ()) -> None:
        """warnings: what the service's owner should know."""
        self._engine, self._uploads, self._lifecycle, self._warnings = engine, uploads, lifecycle, warnings

    def all(self) -> list[Route]:
        endpoints = {
            "/check": self.check,
            "/ocr": self.ocr,
            "/clip/img": self.clip_photo,
            "/clip/txt": self.clip_text,
            "/represent": self.represent,
            "/restart": self.restart,
            "/restart_v2": self.restart_v2,
        }
        posts = [Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()]
        return [Route("/ping", self.ping), Route("/ready", self.ready), *posts]

    async def ocr(self, request: Request) -> Response:
        return replies.lines(await self._look(request, "ocr", self._engine.read_text))

    async def clip_photo(self, request: Request) -> Response:
        return replies.vector(await self._look(request, "clip", self._engine.embed_photo))

    async def represent(self, request: Request) -> Response:
        faces = await self._look(request, "faces", self._engine.find_faces)
        return replies.faces(faces, self._engine.settings.face_recognition_model_name)

    async def clip_text(self, request: Request) -> Response:
        self._engine.require("clip", text=True)
        async with self._uploads.receive(request) as pieces:
            text = await read_text(pieces)
        return replies.vector(await self._engine.embed_text(text, trace_of(request.scope)))

    async def _look(self, request: Request, task: str, verb: Callable[[bytes, Trace], Awaitable[T]]) -> T:
        """Receives the request's photo, and returns what this verb of the engine makes of it."""
        self._engine.require(task)  # before the photo is received
        async with self._uploads.receive(request) as pieces:
            photo = await read_file(request.headers.get("content-type", ""), pieces)
            return await unless_disconnected(request, verb(photo, trace_of(request.scope)))

    async def ping(self, request: Request) -> Response:
        return PlainTextResponse("pong")

    async def ready(self, request: Request) -> Response:
        """Tells a proxy whether to send photos here."""
        if why := self._why_not_ready():
            return replies.failure(503, why, retry_after=5)
        settings = self._engine.settings
        models = {role.name.removesuffix("_model_name"): ref.name for role, ref in self._engine.models.items()}
        return replies.reply({"result": "ready", "instance": settings.instance_name, "models": models})

    def _why_not_ready(self) -> str | None:
        if self._lifecycle.is_stopping:
            return "the service is stopping"
        return "there is no room for more uploads" if self._uploads.is_full else self._engine.why_not_ready()

    async def check(self, request: Request) -> Response:
        settings = self._engine.settings
        return replies.reply(
            {
                "result": "pass",
                "title": "mt-photos-ai服务",
                "help": "https://mtmt.tech/docs/advanced/ocr_api",
                "detector_backend": "insightface",
                "recognition_model": settings.face_recognition_model_name,
                "facial_min_score": settings.face_min_score,
                "facial_max_distance": 0.5,
                "env_use_dml": False,
                "clip_vector_length": clip_vector_length(settings),
                "clip_model": settings.clip_visual_model_name,
                "ocr_model": settings.ocr_model_name,
                "tasks": sorted(settings.tasks),
                "loaded": self._engine.store.loaded,
                "devices": self._engine.runs_on(),
                "demo": is_demo(settings),
                "warnings": [*self._warnings],
                "version": version(),
                "instance": settings.instance_name,
            }
        )

    async def restart(self, request: Request) -> Response:
        await self._engine.store.drop_unused()
        response = replies.reply({"result": "pass"})
        response.background = BackgroundTask(self._engine.store.preload)
        return response

    async def restart_v2(self, request: Request) -> Response:
        response = replies.reply({"result": "pass"}, headers={"connection": "close"})
        response.background = BackgroundTask(self._restart_soon)
        return response

    async def _restart_soon(self) -> None:
        log.info("restarting, because a client requested /restart_v2")
        self._lifecycle.restart()
