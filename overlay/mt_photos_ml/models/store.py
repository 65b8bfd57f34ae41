# SPDX-License-Identifier: AGPL-3.0-only
"""Loads models on first use, shares them between requests, drops idle ones and frees their memory."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..machine import background, memory
from ..runtime.devices import Devices
from ..runtime.ort import shrink_arena
from .catalog import ModelRef
from .loader import Loaded, Loader, Model, ModelKey, ModelUnavailable, Stamp, T, stamp_of
from .progress import ModelState

log = logging.getLogger("mt_photos_ml")

_PATIENCE_SECONDS = 30.0
_CPU_TTL_SECONDS, _DEVICE_TTL_SECONDS = 60.0, 300.0  # loading a model again takes longest on a card
_PAUSE_SECONDS = 5.0
_RECENT_SECONDS = 5.0
_MAX_DELAY_SECONDS = 600.0


class Store:
    """The models of one process. Its coroutines belong to one event loop."""

    def __init__(
        self,
        loader: Loader,
        devices: Devices,
        ttl: float | None,
        preloaded: Sequence[ModelKey[Model]] = (),
        restart: Callable[[], None] = lambda: None,
        progress: Callable[[ModelRef], str] = lambda ref: "downloaded",
        prepare: Callable[[Path, Sequence[int]], bool] = lambda model, shape: False,
        plan: Callable[[Path], None] = lambda model: None,
        *,
        patience_seconds: float = _PATIENCE_SECONDS,
        pause_seconds: float = _PAUSE_SECONDS,
        max_delay_seconds: float = _MAX_DELAY_SECONDS,
        recent_seconds: float = _RECENT_SECONDS,
    ) -> None:
        """ttl: seconds until an idle model is dropped; 0: never; None: what suits the devices.

        preloaded: kept when idle. restart: replaces the process, the only way to free a card's memory. progress: says
        "downloaded: 12 of 350 MB". prepare: writes the prepared form of a model file for inputs of this shape;
        returns whether the loader now finds it. plan: has a device plan a loaded model's shapes (runtime/shaped.py).
        patience_seconds: how long a request waits for a model. pause_seconds: without a request, until models are
        prepared and planned, but at most max_delay_seconds. recent_seconds: how long drop_unused() keeps a used model.
        """
        self._loader, self._devices, self._ttl, self._progress = loader, devices, ttl, progress
        self._preloaded, self._restart, self._prepare = {key.ref: key for key in preloaded}, restart, prepare
        self._plan = plan
        self._patience_seconds, self._pause_seconds = patience_seconds, pause_seconds
        self._max_delay_seconds, self._recent_seconds = max_delay_seconds, recent_seconds
        self._loaded: dict[ModelRef, Loaded[Any]] = {}
        self._loading: dict[ModelRef, asyncio.Task[Loaded[Any]]] = {}
        self._failed: dict[ModelRef, tuple[float, str]] = {}
        self._stamps: dict[ModelRef, Stamp] = {}  # of the files that were loaded last
        self._last_use = time.monotonic()

    @property
    def loaded(self) -> list[str]:
        """The names of the models in memory."""
        return sorted(map(str, self._loaded))

    def state(self, ref: ModelRef) -> ModelState:
        """The state of a model in memory; does not look at its files."""
        if loaded := self._loaded.get(ref):
            idle = None if loaded.users else time.monotonic() - loaded.idle_since
            return ModelState("in use" if loaded.users else "ready", idle, loaded.memory_mb)
        if ref in self._loader.fetching:
            return ModelState("downloading")
        if ref in self._loading:
            return ModelState("loading")
        failure = self._failure(ref)
        return ModelState("failed", error=str(failure)) if failure else ModelState("not loaded")

    def stamp(self, key: ModelKey[Model]) -> Stamp | None:
        """The stamp of the files that were last loaded; None after unload() or drop_unused() dropped the model."""
        return self._stamps.get(key.ref)

    @contextlib.asynccontextmanager
    async def use(self, key: ModelKey[T]) -> AsyncIterator[T]:
        """Loads the model if necessary, and keeps it loaded until the context ends. Raises ModelUnavailable."""
        loaded = await self._get(key, self._patience_seconds)
        loaded.users += 1
        try:
            yield loaded.model
        finally:
            loaded.users -= 1
            self._last_use = loaded.idle_since = time.monotonic()

    async def load(self, key: ModelKey[Model]) -> None:
        """Loads a model now, even if it has just failed, and without a time limit. Raises ModelUnavailable."""
        self._failed.pop(key.ref, None)
        await self._get(key)

    async def pull(self, key: ModelKey[Model]) -> None:
        """Downloads the missing files of a model now, even if it has just failed. Raises ModelUnavailable."""
        self._failed.pop(key.ref, None)
        await self._loader.fetch(key.ref)

    async def unload(self, key: ModelKey[Model]) -> bool:
        """Drops a model; returns False if it is in use."""
        loaded = self._loaded.get(key.ref)
        if loaded and loaded.users:
            return False
        await self._drop([key.ref])
        self._stamps.pop(key.ref, None)
        return True

    async def preload(self) -> None:
        """Loads the models to preload, one after the other. Logs a failure; the first request tries again."""
        for key in self._preloaded.values():
            with contextlib.suppress(ModelUnavailable):
                loaded = await self._get(key)
                await asyncio.wrap_future(background.run(partial(self._plan, loaded.path)))

    def _failure(self, ref: ModelRef) -> ModelUnavailable | None:
        """The model's last failure, with the seconds until the next try; None if it may be tried now."""
        until, message = self._failed.get(ref, (0.0, ""))
        left = until - time.monotonic()
        return ModelUnavailable(message, left) if left > 0 else None

    async def _get(self, key: ModelKey[T], patience_seconds: float | None = None) -> Loaded[T]:
        ref = key.ref
        if ref in self._loaded:
            return self._loaded[ref]
        if failure := self._failure(ref):
            raise failure
        if ref not in self._loading:
            self._loading[ref] = asyncio.create_task(self._load(key))
            self._loading[ref].add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(self._loading[ref]), patience_seconds)
        except TimeoutError:
            step = self._progress(ref) if ref in self._loader.fetching else "loaded"
            raise ModelUnavailable(f"{ref} is still being {step}") from None

    async def _load(self, key: ModelKey[T]) -> Loaded[T]:
        ref = key.ref
        try:
            loaded = await self._loader.load(key)
        except ModelUnavailable as failure:
            log.error("%s", failure)
            self._failed[ref] = time.monotonic() + failure.retry_after, str(failure)
            raise
        finally:
            del self._loading[ref]
        self._loaded[ref], self._stamps[ref], self._last_use = loaded, loaded.stamp, time.monotonic()
        self._failed.pop(ref, None)
        return loaded

    async def drop_unused(self) -> list[str]:
        """Drops models that were not used for recent_seconds (MT Photos calls this in the middle of OCR), frees memory
        and returns their names. Also reloads the other models whose files were replaced; requests in progress finish on
        the old model."""
        names = await self.drop_idle(self._recent_seconds, but_preloaded=False)
        if not names:
            await asyncio.to_thread(_trim_memory)
        self._stamps = {ref: loaded.stamp for ref, loaded in self._loaded.items()}
        for ref, loaded in list(self._loaded.items()):
            found = await asyncio.wrap_future(background.run(partial(stamp_of, ref, loaded.path)))
            is_complete = len(found) == len(loaded.stamp)  # otherwise a share may be gone, or a copy in progress
            if is_complete and found != loaded.stamp:
                log.info("%s was replaced on the disk", ref)
                await self._reload(loaded)
        return names

    async def drop_idle(self, seconds: float, *, but_preloaded: bool = True) -> list[str]:
        """Drops models that were idle for so long and returns their names. Keeps preloaded ones, unless told not to."""
        since = time.monotonic() - seconds
        idle = [ref for ref, loaded in self._loaded.items() if not loaded.users and loaded.idle_since <= since]
        return await self._drop([ref for ref in idle if not (but_preloaded and ref in self._preloaded)])

    async def prepare(self) -> None:
        """Writes and loads prepared forms of models that have none, and has devices plan their shapes."""
        for loaded in [loaded for loaded in self._loaded.values() if not loaded.is_settled]:
            loaded.is_settled = True
            write = partial(self._prepare, loaded.path, loaded.model.example_shape)
            if await asyncio.wrap_future(background.run(write)):
                await self._reload(loaded)
            await asyncio.wrap_future(background.run(partial(self._plan, loaded.path)))

    async def _reload(self, loaded: Loaded[Any]) -> None:
        """Loads a model again, unless it was dropped meanwhile. If that fails, the old one stays."""
        ref = loaded.key.ref
        if self._loaded.get(ref) is not loaded:
            return
        try:
            new = await self._loader.load(loaded.key)
        except ModelUnavailable as failure:
            log.error("%s", failure)
            return
        loaded.is_settled = loaded.stamp == new.stamp  # replaced files need another prepared form
        loaded.model, loaded.path, loaded.stamp, loaded.memory_mb = new.model, new.path, new.stamp, new.memory_mb
        self._stamps[ref] = new.stamp
        await asyncio.to_thread(_trim_memory)

    async def _drop(self, refs: Sequence[ModelRef]) -> list[str]:
        dropped = {str(ref): self._loaded.pop(ref) for ref in refs if ref in self._loaded}
        names = list(dropped)
        if names:
            log.info("unloaded %s", ", ".join(names))
            await asyncio.to_thread(_trim_memory, dropped)
        return names

    @property
    def ttl_seconds(self) -> float:
        """Seconds until an idle model is dropped; 0: never."""
        suited = _DEVICE_TTL_SECONDS if self._devices.holds_memory else _CPU_TTL_SECONDS
        return suited if self._ttl is None else self._ttl

    async def run_maintenance(self) -> None:
        """Drops idle models, and in pauses prepares models and frees memory, until it is cancelled or restarts."""
        pause, trimmed = min(self.ttl_seconds / 2 or self._pause_seconds, self._pause_seconds), 0.0
        prepared = time.monotonic()
        while True:
            await asyncio.sleep(pause)
            in_use = any(loaded.users for loaded in self._loaded.values())
            quiet_seconds = 0.0 if in_use else time.monotonic() - self._last_use
            try:
                if quiet_seconds >= self._pause_seconds or time.monotonic() - prepared >= self._max_delay_seconds:
                    await self.prepare()
                    prepared = time.monotonic()
                if self.ttl_seconds:
                    await self.drop_idle(self.ttl_seconds)
                is_idle = not self._loaded and not self._loading and quiet_seconds >= self.ttl_seconds > 0
                if is_idle and self._devices.holds_memory:
                    log.info("restarting the idle process to free the device's memory")
                    self._restart()
                    return
                if trimmed < self._last_use and quiet_seconds >= pause:
                    trimmed = time.monotonic()
                    await asyncio.to_thread(_trim_memory)
            except Exception:
                log.exception("the upkeep of loaded models failed; it will be tried again")


def _trim_memory(dropped: dict[str, Loaded[Any]] | None = None) -> None:
    """Frees the dropped models and unused memory. Takes a while: call it in a thread."""
    (dropped or {}).clear()
    shrink_arena()
    memory.trim_memory()
