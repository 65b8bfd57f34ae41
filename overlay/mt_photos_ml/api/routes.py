# SPDX-License-Identifier: AGPL-3.0-only
"""The routes: each takes what the request carries, has a worker do the task, and replies."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .. import version
from ..engine import Engine
from ..models.choice import clip_vector_length
from ..photo import Photo
from ..tasks import clip, faces, ocr
from . import replies
from .errors import TaskOff
from .forms import read_file, read_text
from .middleware.body_limit import Queue
from .record import RequestRecord, record_of
from .uploads import Bodies

log = logging.getLogger("mt_photos_ml")

MAX_WAITING = 100
"""Photos, and searches, that wait for a worker; one more is answered 503."""

_REMEMBERED = 1000  # texts whose vectors are kept, 2 to 6 KB each
_MEMORABLE = 200  # characters of such a text at most

T = TypeVar("T")


class Routes:
    """The routes of one service."""

    def __init__(self, engine: Engine, restart: Callable[[], None], warnings: Sequence[str] = ()) -> None:
        """restart: makes the process end once what is in flight is answered, and a new one take its place.

        warnings: what the person who runs the service should know.
        """
        self._settings, self._store, self._models = engine.settings, engine.store, engine.models
        self._scheduler = engine.scheduler
        self._restart, self._warnings = restart, list(warnings)
        threads = engine.settings.request_threads
        self._photo_workers = ThreadPoolExecutor(threads, "photo")
        self._text_worker = ThreadPoolExecutor(1, "text")  # who searches does not wait behind photos
        self._remembered: dict[tuple[int, str], clip.Float] = {}
        self.photos, self.texts = Queue(threads, MAX_WAITING), Queue(1, MAX_WAITING)
        self.bodies = Bodies(2_000_000 * engine.settings.max_upload_mb)

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
        return [
            Route("/ping", self.ping),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()),
        ]

    def close(self) -> None:
        """Ends the workers once they have finished what they are at."""
        self._photo_workers.shutdown()
        self._text_worker.shutdown()

    async def ocr(self, request: Request) -> Response:
        self._check_on("ocr")
        async with (
            self._store.use(self._models.ocr_detector) as detector,
            self._store.use(self._models.ocr_recogniser) as recogniser,
        ):
            score = self._settings.ocr_min_score
            found = await self._of_photo(request, lambda photo: ocr.read(photo, detector, recogniser, score))
        return replies.lines(found)

    async def clip_photo(self, request: Request) -> Response:
        self._check_on("clip")
        async with self._store.use(self._models.clip_visual) as visual:
            vector = await self._of_photo(request, lambda photo: clip.encode_photo(photo, visual))
        return replies.vector(vector)

    async def represent(self, request: Request) -> Response:
        self._check_on("faces")
        async with (
            self._store.use(self._models.face_detector) as detector,
            self._store.use(self._models.face_recogniser) as recogniser,
        ):
            score = self._settings.face_min_score
            found = await self._of_photo(request, lambda photo: faces.find(photo, detector, recogniser, score))
        return replies.faces(found, self._settings.face_recognition_model_name)

    async def clip_text(self, request: Request) -> Response:
        self._check_on("clip")
        self.texts.check()
        async with self.bodies.receive(request) as pieces:
            text = await read_text(pieces)
        remembered = self._store.generation(self._models.clip_textual), text
        if (vector := self._remembered.pop(remembered, None)) is not None:
            record_of(request.scope).note = "remembered"
        else:
            async with self._store.use(self._models.clip_textual) as textual, self.texts.place():
                remembered = self._store.generation(self._models.clip_textual), text
                encode = partial(clip.encode_text, text, textual, self._settings.clip_language)
                vector = await _run(self._text_worker, lambda: self._work(encode, record_of(request.scope)))
        if len(text) <= _MEMORABLE:
            self._remembered[remembered] = vector  # at the end: what goes first was not asked for the longest
            if len(self._remembered) > _REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
        return replies.vector(vector)

    def _check_on(self, task: str) -> None:
        if task not in self._settings.tasks:
            raise TaskOff(f"the task {task} is switched off (TASKS)")

    async def _of_photo(self, request: Request, task: Callable[[Photo], T]) -> T:
        """The task's answer for the photo that the request carries, from a worker, once it is its turn."""
        self.photos.check()
        async with self.bodies.receive(request) as pieces:
            data = await read_file(request.headers.get("content-type", ""), pieces)
            async with self.photos.place():
                if await request.is_disconnected():  # nobody waits for the answer any more
                    raise ClientDisconnect
                return await _run(self._photo_workers, lambda: self._look(data, task, record_of(request.scope)))

    def _look(self, data: bytes, task: Callable[[Photo], T], record: RequestRecord) -> T:
        """Runs in a worker."""
        record.megabytes = len(data) / 1e6
        photo = Photo.open(data)
        record.photo = str(photo)
        try:
            return self._work(lambda: task(photo), record)
        finally:
            record.decode_ms = photo.decode_ms

    def _work(self, task: Callable[[], T], record: RequestRecord) -> T:
        record.waited_ms = record.elapsed_ms()
        with self._scheduler.worker() as usage:
            try:
                return task()
            finally:
                record.model_ms = usage.model_ms

    async def ping(self, request: Request) -> Response:
        return PlainTextResponse("pong")

    async def check(self, request: Request) -> Response:
        settings = self._settings
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
                "loaded": self._store.loaded,
                "demo": settings.demo,
                "warnings": self._warnings,
                "version": version(),
            }
        )

    async def restart(self, request: Request) -> Response:
        await self._store.drop_unused()
        self._remembered.clear()
        response = replies.reply({"result": "pass"})
        response.background = BackgroundTask(self._store.preload)
        return response

    async def restart_v2(self, request: Request) -> Response:
        response = replies.reply({"result": "pass"}, headers={"connection": "close"})
        response.background = BackgroundTask(self._restart_soon)
        return response

    async def _restart_soon(self) -> None:
        log.info("starting afresh, as asked for")
        self._restart()


async def _run(workers: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(workers, work)
