# SPDX-License-Identifier: AGPL-3.0-only
"""The routes: each takes what the request carries, has a worker do the task, and replies."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from string import Template
from textwrap import shorten
from typing import Any, TypeVar

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from .. import version
from ..models.catalog import Part, clip_vector_length, configured
from ..models.store import Slots, Store
from ..photo import Photo
from ..settings import Settings
from ..tasks import clip, faces, ocr
from . import replies
from .access import notes
from .limits import Queue
from .upload import read_file, read_text

log = logging.getLogger("mt_photos_ml")

MAX_WAITING = 100
"""Requests that wait for a worker; one more is answered 503. They hold no body: it is read when its turn comes."""

_REMEMBERED = 1000  # texts whose vectors are kept, 2 to 6 KB each
_MEMORABLE = 200  # characters of such a text at most

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]


class Routes:
    """The routes of one service."""

    def __init__(self, settings: Settings, store: Store, slots: Slots, start_afresh: Callable[[], None]) -> None:
        """start_afresh: makes the process end once what is in flight is answered, and a new one take its place."""
        self._settings, self._store, self._slots, self._start_afresh = settings, store, slots, start_afresh
        self._parts = configured(settings)
        self._language = settings.clip_language
        threads = settings.request_threads
        self._photos = ThreadPoolExecutor(threads, "photo")
        self._texts = ThreadPoolExecutor(1, "text")  # of its own: somebody who searches does not wait behind photos
        self._remembered: dict[str, clip.Float] = {}
        self._queue = Queue(threads + 2, MAX_WAITING)  # two more read their bodies while the workers are busy

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
            Route("/", self.page, methods=["GET"]),
            Route("/ping", self.ping, methods=["GET"]),
            *(Route(path, _answered(endpoint), methods=["POST"]) for path, endpoint in endpoints.items()),
        ]

    def close(self) -> None:
        """Ends the workers once they have finished what they are at."""
        self._photos.shutdown()
        self._texts.shutdown()

    async def page(self, request: Request) -> Response:
        template = Template((Path(__file__).with_name("page.html")).read_text(encoding="utf-8"))
        return HTMLResponse(
            template.substitute(
                version=version(),
                demo="demo" if self._settings.demo else "",
                address=escape(str(request.base_url).rstrip("/")),
                length=clip_vector_length(self._settings) or "?",
                models="".join(f"<li>{escape(str(part))}</li>" for parts in self._parts.values() for part in parts),
            )
        )

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
                "tasks": sorted(self._parts),
                "loaded": self._store.loaded,
                "demo": settings.demo,
                "version": version(),
            }
        )

    async def ocr(self, request: Request) -> Response:
        found = await self._of_photo(request, "ocr", ocr.read, self._settings.ocr_min_score)
        return replies.lines(found)

    async def clip_photo(self, request: Request) -> Response:
        visual, _ = self._needed("clip")
        return replies.vector(await self._of_photo(request, [visual], clip.encode_photo))

    async def clip_text(self, request: Request) -> Response:
        _, textual = self._needed("clip")
        text = await read_text(request)
        if text in self._remembered:
            notes(request.scope).append("remembered")
            vector = self._remembered.pop(text)
        else:
            async with self._store.use([textual]) as models:
                vector = await self._in(
                    self._texts, self._timed, notes(request.scope), clip.encode_text, text, *models, self._language
                )
        if len(text) <= _MEMORABLE:
            self._remembered[text] = vector  # at the end: what goes first is what was not asked for the longest
            if len(self._remembered) > _REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
        return replies.vector(vector)

    async def represent(self, request: Request) -> Response:
        found = await self._of_photo(request, "faces", faces.find, self._settings.face_min_score)
        return replies.faces(found, self._settings.face_recognition_model_name)

    async def restart(self, request: Request) -> Response:
        await self._store.drop_unused()
        self._remembered.clear()
        answer = replies.reply({"result": "pass"})
        answer.background = BackgroundTask(self._store.preload)
        return answer

    async def restart_v2(self, request: Request) -> Response:
        answer = replies.reply(
            {"result": "pass"}, headers={"connection": "close"}
        )  # it would end within the next request
        answer.background = BackgroundTask(self._restart_soon)
        return answer

    async def _restart_soon(self) -> None:
        log.info("starting afresh, as asked for")
        self._start_afresh()

    def _needed(self, task: str) -> tuple[Part, ...]:
        if task not in self._parts:
            raise replies.TaskOff(task)
        return self._parts[task]

    async def _of_photo(
        self, request: Request, needed: str | Sequence[Part], task: Callable[..., T], *options: Any
    ) -> T:
        """The task's answer for the photo that the request carries, from a worker."""
        parts = self._needed(needed) if isinstance(needed, str) else needed
        async with self._store.use(parts) as models, self._queue.place():
            data = await read_file(request)
            return await self._in(self._photos, self._look, notes(request.scope), data, task, *models, *options)

    def _look(self, words: list[str], data: bytes, task: Callable[..., T], *args: Any) -> T:
        """Runs in a worker, and adds to the words for the log what the photo was."""
        words.append(f"{len(data) / 1e6:.1f} MB")
        photo = Photo.open(data)
        words.insert(0, str(photo))
        try:
            return self._timed(words, task, photo, *args)
        finally:
            words.append(f"decode {photo.decode_ms:.0f} ms")

    def _timed(self, words: list[str], task: Callable[..., T], *args: Any) -> T:
        self._slots.spent_ms()
        try:
            with self._slots.at_work():
                return task(*args)
        finally:
            words.append(f"model {self._slots.spent_ms():.0f} ms")

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)


def _answered(endpoint: Endpoint) -> Endpoint:
    """The endpoint, with its errors turned into the replies that the API has for them."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            notes(request.scope).append(shorten(str(error) or type(error).__name__, 120, placeholder=" …"))
            return replies.failure(error)

    return answered
