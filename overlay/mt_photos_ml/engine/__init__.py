# SPDX-License-Identifier: AGPL-3.0-only
"""Recognition without HTTP: reads text, finds faces, and makes vectors of photos and of words."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import TypeVar

from ..machine import card
from ..machine.cpu import cores
from ..models.catalog import ModelRef
from ..models.choice import preloaded
from ..models.hub import Hub
from ..models.loader import Loader
from ..models.progress import Download
from ..models.store import Store
from ..photo import Photo
from ..runtime import Runtime
from ..runtime.devices import Devices
from ..runtime.npu import NpuRuntime
from ..runtime.ort import OrtRuntime
from ..runtime.prepared.runtime import PreparedRuntime
from ..runtime.scheduler import CpuScheduler
from ..runtime.shaped import ShapedRuntime
from ..settings import Settings
from ..tasks import clip, faces, ocr
from ..tasks.networks import Networks
from .status import EngineStatus, ModelStatus
from .trace import Trace
from .workers import MAX_WAITING, Workers

REMEMBERED_TEXTS = 1000
"""How many texts keep their vectors, 2 to 6 KB each."""

_MAX_REMEMBERED_LENGTH = 200  # characters

T = TypeVar("T")


class TaskOff(LookupError):
    """The setting TASKS leaves this task out."""


class Engine:
    """Recognises photos and texts. A process has one; its coroutines belong to one event loop.

    read_text, find_faces, embed_photo and embed_text raise TaskOff, Busy, ModelUnavailable, MemoryError or
    InferenceError; those that take a photo also raise PhotoError and DecoderMissing. A photo is the bytes of its file.
    They fill in the trace.
    """

    def __init__(
        self, settings: Settings, restart: Callable[[], None] = lambda: None, devices: Devices | None = None
    ) -> None:
        """settings: already checked. restart: ends the process so that another replaces it. devices: by default those
        that the settings choose."""
        self.settings, self.devices = settings, devices or Devices.of(settings, inference_threads(settings))
        self.networks = Networks.of(settings)
        roles = self.networks.by_role()
        self.models = {role: key.ref for role, key in roles.items() if role.task in settings.tasks}
        """The models in use, by role."""
        self._runtime, self._shaped, self._prepared = _runtimes(settings, self.devices)
        self._downloads: dict[ModelRef, Download] = {}  # the latest state of each download
        npu_file = self.devices.npu.file if self.devices.npu else None
        hub = Hub(settings.cache_folder, settings.hf_endpoint, npu_file=npu_file, progress=self._note_download)
        self._scheduler = CpuScheduler(share(cores(), settings))
        loader, at_start = Loader(self._runtime, hub, self._scheduler), preloaded(settings)
        keys = [key for key in self.networks.all() if key.ref in at_start]
        prepare = self._prepared.prepare if self._prepared else lambda model, shape: False
        ttl, told = settings.model_ttl, self._describe_download
        self.store = Store(loader, self.devices, ttl, keys, restart, told, prepare, self._shaped.plan)
        waiting, patience = share(MAX_WAITING, settings), settings.queue_timeout
        self._photos = Workers("photo", share(settings.request_threads, settings), waiting, patience)
        self._texts = Workers("text", 1, waiting, patience)  # so that a search does not wait behind photos
        self._remembered = lru_cache(REMEMBERED_TEXTS)(lambda stamp, text: list[clip.Float]())

    def require(self, task: str, *, text: bool = False) -> None:
        """Raises TaskOff, or Busy if the queue is full. Called before an upload is received."""
        if task not in self.settings.tasks:
            raise TaskOff(f"the task {task} is switched off (TASKS)")
        (self._texts if text else self._photos).require_room()

    async def read_text(self, photo: bytes, trace: Trace) -> list[ocr.Line]:
        """Returns the lines of text, in reading order."""
        self.require("ocr")
        use, min_score = self.store.use, self.settings.ocr_min_score
        async with use(self.networks.ocr_detector) as detector, use(self.networks.ocr_recogniser) as recogniser:
            return await self._look(photo, trace, lambda opened: ocr.read(opened, detector, recogniser, min_score))

    async def find_faces(self, photo: bytes, trace: Trace) -> list[faces.Face]:
        """Returns the faces, the highest score first."""
        self.require("faces")
        use, min_score = self.store.use, self.settings.face_min_score
        async with use(self.networks.face_detector) as detector, use(self.networks.face_recogniser) as recogniser:
            return await self._look(photo, trace, lambda opened: faces.find(opened, detector, recogniser, min_score))

    async def embed_photo(self, photo: bytes, trace: Trace) -> clip.Float:
        """Returns a (D,) vector of unit length."""
        self.require("clip")
        async with self.store.use(self.networks.clip_visual) as visual:
            return await self._look(photo, trace, lambda opened: clip.encode_photo(opened, visual))

    async def embed_text(self, text: str, trace: Trace) -> clip.Float:
        """Returns a (D,) vector of unit length; for a recent text the one that the loaded model gave before."""
        self.require("clip", text=True)
        key, language = self.networks.clip_textual, self.settings.clip_language
        if slot := self._slot(text):
            trace.note = "remembered"
            return slot[0]
        async with self.store.use(key) as textual:
            slot = self._slot(text)  # for the model that is loaded now
            vector = await self._run(self._texts, lambda: clip.encode_text(text, textual, language), trace)
        slot[:] = [vector]
        return vector

    def _slot(self, text: str) -> list[clip.Float]:
        """The list that keeps the vector of this text: empty, or with one item."""
        stamp = self.store.stamp(self.networks.clip_textual)
        return self._remembered(stamp, text) if stamp and len(text) <= _MAX_REMEMBERED_LENGTH else []

    async def _look(self, data: bytes, trace: Trace, task: Callable[[Photo], T]) -> T:
        def look() -> T:
            trace.megabytes = len(data) / 1e6
            photo = Photo.open(data)
            trace.photo = str(photo)
            try:
                return task(photo)
            finally:
                trace.decode_ms = photo.decode_ms

        return await self._run(self._photos, look, trace)

    async def _run(self, workers: Workers, task: Callable[[], T], trace: Trace) -> T:
        def work() -> T:
            trace.waited_ms = trace.elapsed_ms()
            with self._scheduler.worker() as usage:
                try:
                    return task()
                finally:
                    trace.model_ms = usage.model_ms or None  # None if the photo was rejected before a model ran

        return await workers.run(work)

    @property
    def queues(self) -> dict[str, Workers]:
        """The queues of photos and of texts."""
        return {"photos": self._photos, "texts": self._texts}

    def why_not_ready(self) -> str | None:
        """Why the service would reject the next photo: the queue is full, or a model is unavailable. None if it would
        not. Loads nothing and does not read the disk."""
        if self._photos.present >= self._photos.most:
            return f"the queue is full ({self._photos.present} photos)"
        for role, ref in self.models.items():
            state, download = self.store.state(ref).name, self._downloads.get(ref)
            if state == "failed" or (state == "downloading" and download and download.done < download.total):
                return f"{role.task}: the model {ref.name} is unavailable"
        return None

    def status(self) -> EngineStatus:
        """The status. Reads the disk and may ask the devices, so don't call it on the event loop."""
        cache, models = self.settings.cache_folder, list[ModelStatus]()
        for role, ref in self.models.items():
            runs_on, state = self._runtime.runs_on(ref.path(cache)), self.store.state(ref)
            download, plans = self._downloads.get(ref), self._shaped.plans(ref.path(cache))
            models.append(ModelStatus.of(role, ref, cache, state, runs_on, download, plans))
        unused = [*self.devices.refused, *self.devices.distrusted.values()]
        return EngineStatus(self.devices.describe(), card.used_mb(int(self.devices.number)), unused, models)

    def runs_on(self) -> dict[str, str]:
        """The devices of each task's loaded models, such as "CUDA" or "CUDA, CPU"."""
        found, loaded = dict[str, dict[str, None]](), self.store.loaded
        for role, ref in self.models.items():
            if str(ref) in loaded:
                name = self._runtime.runs_on(ref.path(self.settings.cache_folder))
                found.setdefault(role.task, {})[name] = None
        return {task: ", ".join(names) for task, names in found.items()}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Preloads models and maintains them until the context ends, then closes the engine."""
        background = [asyncio.create_task(self.store.run_maintenance()), asyncio.create_task(self.store.preload())]
        try:
            yield
        finally:
            for task in background:
                task.cancel()
            self.close()

    def close(self) -> None:
        """Stops preparing models; waits for the photos in progress."""
        if self._prepared:
            self._prepared.close()
        self._photos.close()
        self._texts.close()

    def _note_download(self, download: Download) -> None:
        self._downloads[download.ref] = download

    def _describe_download(self, ref: ModelRef) -> str:
        return f"downloaded: {self._downloads[ref]}" if ref in self._downloads else "downloaded"


def _runtimes(settings: Settings, devices: Devices) -> tuple[Runtime, ShapedRuntime, PreparedRuntime | None]:
    """The runtime that opens sessions, the part of it that plans shapes, and the part that prepares models, if any."""
    threads, prepared = inference_threads(settings), None
    processor: Runtime = OrtRuntime(threads)
    if settings.prepare_models:
        processor = prepared = PreparedRuntime(processor, OrtRuntime(1), settings.cache_folder, threads)
    shaped = ShapedRuntime(devices, processor)
    return NpuRuntime(devices.npu, shaped) if devices.npu else shaped, shaped, prepared


def share(all: int, settings: Settings) -> int:
    """The share of one process in a total of the machine or the service."""
    return max(all // settings.workers, 1)


def inference_threads(settings: Settings) -> int:
    """The setting, else the number of cores, at most four: more threads speed these networks up little."""
    return settings.model_intra_op_threads or min(share(cores(), settings), 4)
