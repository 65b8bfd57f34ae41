# SPDX-License-Identifier: AGPL-3.0-only
"""Loaded models: loaded on first use, shared by all requests, dropped when idle, the memory given back."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from .. import memory
from ..daemon import run_in_daemon
from ..runtime import ModelDamaged, Runtime, RuntimeSession, Session
from ..runtime.scheduler import CpuScheduler, ScheduledSession
from .catalog import ModelRef
from .hub import DownloadError
from .variants import variant_of

log = logging.getLogger("mt_photos_ml")

_PATIENCE = 30.0  # seconds that a request waits for a model; after that it is told to come again
_TTL, _TTL_OF_A_DEVICE = 60.0, 300.0  # seconds
_QUARANTINE = 30.0  # seconds during which a model that failed is not tried again

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class ModelKey(Generic[T_co]):
    """A model, and what makes of its session, and of the folder that it lies in, what a task works with."""

    ref: ModelRef
    load: Callable[[Session, Path], T_co]


class Source(Protocol):
    """Who puts model files into the cache."""

    def fetch(self, ref: ModelRef) -> Path:
        """The model file, downloaded where it is missing. Blocks. Raises DownloadError."""
        ...

    def invalidate(self, ref: ModelRef, files: Sequence[str]) -> bool:
        """Removes damaged files, of ref.files; True where they can be fetched again."""
        ...


class ModelUnavailable(RuntimeError):
    """A model can't be used now. message: why and what to do. retry_after: seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _BesideDamaged(ModelDamaged):
    """Not the model file itself but what lies beside it, where it has anything beside it."""


@dataclass
class _Loaded(Generic[T]):
    model: T
    users: int = 0
    idle_since: float = field(default_factory=time.monotonic)


class Store:
    """The models of one process. Its coroutines belong to one event loop."""

    def __init__(
        self,
        runtime: Runtime,
        source: Source,
        scheduler: CpuScheduler,
        ttl: float | None,
        preloaded: Sequence[ModelKey[object]] = (),
        restart: Callable[[], None] = lambda: None,
    ) -> None:
        """ttl: seconds after which an idle model is dropped; 0 for never, None for what suits the device.

        preloaded: loaded at the start, and not dropped when idle. restart: ends the process for another to take its
        place, where nothing else gives a device's memory back.
        """
        self._runtime, self._source, self._scheduler, self._ttl = runtime, source, scheduler, ttl
        self._preloaded, self._restart = {key.ref: key for key in preloaded}, restart
        self._loaded: dict[ModelRef, _Loaded[Any]] = {}
        self._loading: dict[ModelRef, asyncio.Task[_Loaded[Any]]] = {}
        self._failed: dict[ModelRef, tuple[float, ModelUnavailable]] = {}
        self._one_load = asyncio.Lock()
        self._last_use = time.monotonic()

    @property
    def loaded(self) -> list[str]:
        """The models that are in memory."""
        return sorted(map(str, self._loaded))

    @contextlib.asynccontextmanager
    async def use(self, key: ModelKey[T]) -> AsyncIterator[T]:
        """The model, which stays loaded for as long as the context lasts. Raises ModelUnavailable."""
        entry = await self._get(key)
        entry.users += 1
        try:
            yield entry.model
        finally:
            entry.users -= 1
            self._last_use = entry.idle_since = time.monotonic()

    async def preload(self) -> None:
        """Loads what is to be kept, one after the other; a failure is logged, and the first request tries again."""
        for key in self._preloaded.values():
            with contextlib.suppress(ModelUnavailable):
                await self._get(key, patience=None)

    async def _get(self, key: ModelKey[T], patience: float | None = _PATIENCE) -> _Loaded[T]:
        ref = key.ref
        if ref in self._loaded:
            return self._loaded[ref]
        until, failure = self._failed.get(ref, (0.0, None))
        if failure is not None and time.monotonic() < until:
            raise ModelUnavailable(str(failure), until - time.monotonic())
        if ref not in self._loading:
            self._loading[ref] = asyncio.create_task(self._load(key))
            self._loading[ref].add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(self._loading[ref]), patience)
        except TimeoutError:
            raise ModelUnavailable(f"{ref} is still being downloaded or loaded", _PATIENCE) from None

    async def _load(self, key: ModelKey[T]) -> _Loaded[T]:
        try:
            entry = _Loaded(await self._fetch_and_open(key))
        except ModelUnavailable as failure:
            log.error("%s", failure)
            self._failed[key.ref] = time.monotonic() + failure.retry_after, failure
            raise
        finally:
            del self._loading[key.ref]
        self._loaded[key.ref] = entry
        self._failed.pop(key.ref, None)
        return entry

    async def _fetch_and_open(self, key: ModelKey[T], again: bool = True) -> T:
        """again: whether a damaged model may be fetched once more."""
        ref = key.ref
        try:
            # in a daemon thread, since a download takes minutes: the end of the service must not wait for it
            path = await asyncio.wrap_future(run_in_daemon(lambda: self._source.fetch(ref)))
            async with self._one_load:
                return await asyncio.to_thread(self._open, key, path)
        except DownloadError as error:
            raise ModelUnavailable(f"{ref} can't be downloaded: {error}", _QUARANTINE) from error
        except ModelDamaged as error:
            log.warning("%s is damaged: %s", ref, error)
            files = ref.files[1:] if isinstance(error, _BesideDamaged) and ref.files[1:] else ref.files[:1]
            if not (again and await asyncio.to_thread(self._source.invalidate, ref, files)):
                raise ModelUnavailable(
                    f"{ref} is damaged; delete {path.parent} and put it there again", _QUARANTINE
                ) from error
        except MemoryError as error:
            raise ModelUnavailable(f"there is not enough memory to load {ref}", _QUARANTINE) from error
        except Exception as error:
            log.debug("loading failed", exc_info=True)
            raise ModelUnavailable(f"{ref} can't be loaded: {_first_line(error)}", _QUARANTINE) from error
        return await self._fetch_and_open(key, again=False)

    def _open(self, key: ModelKey[T], path: Path) -> T:
        """The model, whose own files, such as a large vocabulary, are read while its session is opened."""
        started = time.perf_counter()
        with ThreadPoolExecutor(1, "open") as opener:
            opening = opener.submit(self._open_session, key.ref, path)
            try:
                model = key.load(ScheduledSession(opening, self._scheduler), path.parent)
            except MemoryError:
                raise
            except Exception as error:  # tokenizers raises no class of its own
                opening.result()  # what is wrong with the model file itself comes first
                raise _BesideDamaged(f"{path.parent}: {_first_line(error)}") from error
            opening.result()
        variant = f" ({key.ref.variant})" if key.ref.variant else ""
        log.info("loaded %s%s in %.2f s", key.ref, variant, time.perf_counter() - started)
        return model

    def _open_session(self, ref: ModelRef, path: Path) -> RuntimeSession:
        try:
            return self._runtime.open(variant_of(path, ref.variant))
        except ModelDamaged as error:
            if not ref.variant:
                raise
            again = f"`mt-photos-ml models optimize {ref.name} PHOTOS` makes it again"  # the original is not to blame
            raise RuntimeError(f"its {ref.variant} variant is damaged; {again}") from error

    async def drop_unused(self) -> list[str]:
        """Drops all that nobody uses at the moment, gives the memory back, and says what it was."""
        return await self._drop([ref for ref, entry in self._loaded.items() if not entry.users])

    async def drop_idle(self, seconds: float) -> None:
        """Drops what nobody has used for so long, but for what is preloaded."""
        since = time.monotonic() - seconds
        idle = [ref for ref, entry in self._loaded.items() if not entry.users and entry.idle_since <= since]
        if idle := [ref for ref in idle if ref not in self._preloaded]:
            await self._drop(idle)

    async def _drop(self, refs: Sequence[ModelRef]) -> list[str]:
        dropped, names = [self._loaded.pop(ref) for ref in refs], list(map(str, refs))
        if names:
            log.info("dropped %s", ", ".join(names))
        await asyncio.to_thread(self._trim_memory, dropped)
        return names

    @property
    def _idle_seconds(self) -> float:
        """After which an idle model is dropped: soon where loading it again costs next to nothing."""
        if self._ttl is not None:
            return self._ttl
        return _TTL_OF_A_DEVICE if self._runtime.holds_a_device else _TTL

    async def run_maintenance(self) -> None:
        """For as long as the service runs: drops idle models, and in a pause gives back what photos left free."""
        pause, trimmed = min((self._ttl if self._ttl is not None else _TTL) / 2 or 10, 10), 0.0
        while True:
            await asyncio.sleep(pause)
            if seconds := self._idle_seconds:
                await self.drop_idle(seconds)
                rests = not self._loaded and not self._loading and self._last_use <= time.monotonic() - seconds
                if rests and self._runtime.holds_a_device:
                    log.info("starting afresh, since nothing was asked for a while: so the device's memory comes back")
                    self._restart()
                    return
            last = max((entry.idle_since for entry in self._loaded.values()), default=0.0)
            if trimmed < last < time.monotonic() - pause and not any(e.users for e in self._loaded.values()):
                trimmed = time.monotonic()
                await asyncio.to_thread(self._trim_memory, [])

    def _trim_memory(self, dropped: list[_Loaded[Any]]) -> None:
        dropped.clear()
        self._runtime.trim_memory()
        memory.trim_memory()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
