# SPDX-License-Identifier: AGPL-3.0-only
"""Loaded models: loaded on first use, shared by all requests, dropped when idle, the memory given back."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from .. import memory
from ..runtime import Damaged, Opened, Runtime, Session
from .catalog import Part, int8_of
from .hub import DownloadError
from .transfer import in_daemon

log = logging.getLogger("mt_photos_ml")

Maker = Callable[[Session, Path], Any]
"""Makes of a session, and of the folder that the model lies in, what a task works with."""

_PATIENCE = 30.0  # seconds that a request waits for a model; after that it is told to come again
_TTL, _TTL_OF_A_DEVICE = 60.0, 300.0  # seconds
_QUARANTINE = 30.0  # seconds during which a model that failed is not tried again


class Source(Protocol):
    """Who puts model files into the cache."""

    def fetch(self, part: Part) -> Path:
        """The model file, downloaded where it is missing. Blocks. Raises DownloadError."""
        ...

    def discard(self, part: Part, files: Sequence[str]) -> bool:
        """Removes damaged files, of part.files; True where they can be fetched again."""
        ...


class ModelUnavailable(RuntimeError):
    """A model can't be used now. message: why and what to do. retry_after: seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _BesideDamaged(Damaged):
    """Not the model file itself but what lies beside it, where it has anything beside it."""


class Slots:
    """Shares the processor's cores out to inferences: several to a lone one, one to each where as many workers are at
    work as there are cores. What finds none free waits its turn."""

    def __init__(self, cores: int, threads: int) -> None:
        """threads: of an inference that is alone."""
        self._cores, self._threads = cores, min(threads, cores)
        self._free = threading.Semaphore(cores)
        self._turn, self._counting = threading.Lock(), threading.Lock()
        self._at_work = 0
        self._thread = threading.local()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """A worker is in it from decoding to answer, and wants a core throughout."""
        with self._counting:
            self._at_work += 1
        try:
            yield
        finally:
            with self._counting:
                self._at_work -= 1

    def run(self, opened: Opened, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        one_thread = opened.one_thread if self._at_work >= self._cores else None
        session, threads = (one_thread, 1) if one_thread else (opened, self._threads)
        with self._turn:  # one at a time gathers cores, so that who needs several is not passed by for ever
            for _ in range(threads):
                self._free.acquire()
        try:
            started = time.perf_counter()
            return session.run(feed)
        finally:
            self._thread.spent = getattr(self._thread, "spent", 0.0) + time.perf_counter() - started
            self._free.release(threads)

    def spent_ms(self) -> float:
        """Milliseconds of inference by this thread since the last call."""
        spent: float = getattr(self._thread, "spent", 0.0)
        self._thread.spent = 0.0
        return spent * 1000


@dataclass(frozen=True)
class _Slotted:
    """A session, perhaps still being opened, that takes a slot for every run."""

    opening: Future[Opened]
    slots: Slots

    @property
    def session(self) -> Opened:
        return self.opening.result()

    @property
    def inputs(self) -> Sequence[Any]:
        return self.session.inputs

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.session.metadata

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return self.slots.run(self.session, feed)


@dataclass
class _Loaded:
    model: Any
    users: int = 0
    idle_since: float = field(default_factory=time.monotonic)


class Store:
    """The models of one process. Its coroutines belong to one event loop."""

    def __init__(
        self,
        runtime: Runtime,
        source: Source,
        makers: Mapping[tuple[str, str], Maker],
        slots: Slots,
        ttl: float | None,
        kept: Sequence[Part] = (),
        start_afresh: Callable[[], None] = lambda: None,
    ) -> None:
        """makers: by folder and kind of a part. ttl: seconds after which an idle model is dropped; 0 for never, None
        for what suits the device.

        kept: what is to be preloaded, and not dropped when idle. start_afresh: ends the process for another to take its
        place, where nothing else gives a device's memory back.
        """
        self._kept, self._start_afresh = kept, start_afresh
        self._runtime, self._source, self._makers, self._slots, self._ttl = runtime, source, makers, slots, ttl
        self._loaded: dict[Part, _Loaded] = {}
        self._loading: dict[Part, asyncio.Task[_Loaded]] = {}
        self._failed: dict[Part, tuple[float, ModelUnavailable]] = {}
        self._one_load = asyncio.Lock()
        self._last_use = time.monotonic()

    @property
    def loaded(self) -> list[str]:
        """The parts that are in memory."""
        return sorted(map(str, self._loaded))

    @contextlib.asynccontextmanager
    async def use(self, parts: Sequence[Part]) -> AsyncIterator[list[Any]]:
        """The models, which stay loaded for as long as the context lasts. Raises ModelUnavailable."""
        entries: list[_Loaded] = []
        try:
            for part in parts:
                entries.append(await self._get(part))
                entries[-1].users += 1  # at once: the next part may take minutes, and this one would count as idle
            yield [entry.model for entry in entries]
        finally:
            self._last_use = time.monotonic()
            for entry in entries:
                entry.users -= 1
                entry.idle_since = self._last_use

    async def preload(self) -> None:
        """Loads what is to be kept, one after the other; a failure is logged, and the first request tries again."""
        for part in self._kept:
            with contextlib.suppress(ModelUnavailable):
                await self._get(part, patience=None)

    async def _get(self, part: Part, patience: float | None = _PATIENCE) -> _Loaded:
        if part in self._loaded:
            return self._loaded[part]
        until, failure = self._failed.get(part, (0.0, None))
        if failure is not None and time.monotonic() < until:
            raise ModelUnavailable(str(failure), until - time.monotonic())
        if part not in self._loading:
            self._loading[part] = asyncio.create_task(self._load(part))
            self._loading[part].add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(self._loading[part]), patience)
        except TimeoutError:
            raise ModelUnavailable(f"{part} is still being downloaded or loaded", _PATIENCE) from None

    async def _load(self, part: Part) -> _Loaded:
        try:
            entry = _Loaded(await self._fetched_and_opened(part))
        except ModelUnavailable as failure:
            log.error("%s", failure)
            self._failed[part] = time.monotonic() + failure.retry_after, failure
            raise
        finally:
            del self._loading[part]
        self._loaded[part] = entry
        self._failed.pop(part, None)
        return entry

    async def _fetched_and_opened(self, part: Part) -> Any:
        for again in (True, False):
            try:
                # in a daemon thread, since a download takes minutes: the end of the service must not wait for it
                path = await asyncio.wrap_future(in_daemon(lambda: self._source.fetch(part)))
            except DownloadError as error:
                raise ModelUnavailable(f"{part} can't be downloaded: {error}", _QUARANTINE) from error
            try:
                async with self._one_load:
                    return await asyncio.to_thread(self._open, part, path)
            except Damaged as error:
                log.warning("%s is damaged: %s", part, error)
                files = part.files[1:] if isinstance(error, _BesideDamaged) and part.files[1:] else part.files[:1]
                if not (again and await asyncio.to_thread(self._source.discard, part, files)):
                    raise ModelUnavailable(
                        f"{part} is damaged; delete {path.parent} and put it there again", _QUARANTINE
                    ) from error
            except MemoryError as error:
                raise ModelUnavailable(f"there is not enough memory to load {part}", _QUARANTINE) from error
            except Exception as error:
                log.debug("loading failed", exc_info=True)
                raise ModelUnavailable(f"{part} can't be loaded: {_first_line(error)}", _QUARANTINE) from error
        raise AssertionError("unreachable")

    def _open(self, part: Part, path: Path) -> Any:
        """The model, whose own files, such as a large vocabulary, are read while its session is opened."""
        started = time.perf_counter()
        with ThreadPoolExecutor(1, "open") as opener:
            opening = opener.submit(self._session, part, path)
            try:
                model = self._makers[part.folder, part.kind](_Slotted(opening, self._slots), path.parent)
            except MemoryError:
                raise
            except Exception as error:  # tokenizers raises no class of its own
                opening.result()  # what is wrong with the model file itself comes first
                raise _BesideDamaged(f"{path.parent}: {_first_line(error)}") from error
            opening.result()
        log.info("loaded %s%s in %.2f s", part, " (int8)" if part.int8 else "", time.perf_counter() - started)
        return model

    def _session(self, part: Part, path: Path) -> Opened:
        if not part.int8:
            return self._runtime.open(path)
        try:
            return self._runtime.open(int8_of(path))
        except Damaged as error:  # the original is not to blame
            again = f"`mt-photos-ml models optimize {part.name} PHOTOS` makes it again"
            raise RuntimeError(f"its int8 variant is damaged; {again}") from error

    async def drop_unused(self) -> list[str]:
        """Drops all that nobody uses at the moment, gives the memory back, and says what it was."""
        return await self._drop([part for part, entry in self._loaded.items() if not entry.users])

    async def drop_idle(self, seconds: float) -> None:
        """Drops what nobody has used for so long, but for what is to be kept."""
        since = time.monotonic() - seconds
        idle = [p for p, e in self._loaded.items() if not e.users and e.idle_since <= since and p not in self._kept]
        if idle:
            await self._drop(idle)

    async def _drop(self, parts: Sequence[Part]) -> list[str]:
        dropped, names = [self._loaded.pop(part) for part in parts], list(map(str, parts))
        if names:
            log.info("dropped %s", ", ".join(names))
        await asyncio.to_thread(self._free, dropped)
        return names

    @property
    def _seconds(self) -> float:
        """After which an idle model is dropped: soon where loading it again costs next to nothing."""
        if self._ttl is not None:
            return self._ttl
        return _TTL_OF_A_DEVICE if self._runtime.holds_a_device else _TTL

    async def look_after(self) -> None:
        """Runs for as long as the service does: drops idle models, and in a pause gives back what photos left free."""
        pause, given_back = min((self._ttl if self._ttl is not None else _TTL) / 2 or 10, 10), 0.0
        while True:
            await asyncio.sleep(pause)
            if self._seconds:
                await self.drop_idle(self._seconds)
                rests = not self._loaded and not self._loading and self._last_use <= time.monotonic() - self._seconds
                if rests and self._runtime.holds_a_device:
                    log.info("starting afresh, since nothing was asked for a while: so the device's memory comes back")
                    self._start_afresh()
                    return
            last = max((entry.idle_since for entry in self._loaded.values()), default=0.0)
            if given_back < last < time.monotonic() - pause and not any(e.users for e in self._loaded.values()):
                given_back = time.monotonic()
                await asyncio.to_thread(self._free, [])

    def _free(self, models: list[_Loaded]) -> None:
        models.clear()
        self._runtime.give_back()
        memory.give_back()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
