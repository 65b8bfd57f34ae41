# SPDX-License-Identifier: AGPL-3.0-only
"""Loads a model: downloads it if it is missing, opens and checks it, and downloads it once more if it is damaged."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ..machine import background
from ..machine.memory import anonymous_mb
from ..runtime import ModelDamaged, Runtime, Session
from ..runtime.scheduler import CpuScheduler, ScheduledSession
from .catalog import ModelRef
from .hub import DownloadError, Hub
from .variants import variant_of

log = logging.getLogger("mt_photos_ml")

_RETRY_SECONDS = 30.0  # until a model that failed is tried again

Stamp = tuple[tuple[int, int, int], ...]
"""The modification time (ns), size (bytes) and inode of each file of a model: it changes if the files do."""


class Model(Protocol):
    """A loaded model, as a task uses it."""

    @property
    def example_shape(self) -> Sequence[int]:
        """The shape of an input that the task makes."""


T = TypeVar("T", bound=Model)
T_co = TypeVar("T_co", bound=Model, covariant=True)


@dataclass(frozen=True)
class ModelKey(Generic[T_co]):
    """A model, and the function that makes the task's Model from its session and its folder."""

    ref: ModelRef
    load: Callable[[Session, Path], T_co]


class ModelUnavailable(RuntimeError):
    """A model can't be used now; the message says why and what to do. retry_after: seconds."""

    def __init__(self, message: str, retry_after: float = _RETRY_SECONDS) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _OtherFileDamaged(ModelDamaged):
    """A file beside the model file is damaged, or the model file if there is no other."""


@dataclass
class Loaded(Generic[T]):
    """A loaded model. path: of the model file. stamp: of the files before loading. memory_mb: that loading took. users:
    requests that use it. idle_since: by time.monotonic(). is_settled: whether a prepared form was tried."""

    key: ModelKey[T]
    model: T
    path: Path
    stamp: Stamp
    memory_mb: float
    users: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    is_settled: bool = False


class Loader:
    """Loads one model at a time; downloads run in parallel."""

    def __init__(self, runtime: Runtime, hub: Hub, scheduler: CpuScheduler) -> None:
        self._runtime, self._hub, self._scheduler = runtime, hub, scheduler
        self._one_load = asyncio.Lock()
        self._fetching: dict[ModelRef, asyncio.Future[Path]] = {}

    @property
    def fetching(self) -> list[ModelRef]:
        """The models whose files it looks for or downloads now."""
        return list(self._fetching)

    async def fetch(self, ref: ModelRef) -> Path:
        """Returns the path of the model file. Calls during a download wait for that one. Raises ModelUnavailable."""
        if ref not in self._fetching:
            # in a daemon thread, so that a download can't delay the end of the process
            future = self._fetching[ref] = asyncio.wrap_future(background.run(lambda: self._hub.fetch(ref)))
            future.add_done_callback(lambda _: self._fetching.pop(ref))
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(self._fetching[ref])
        except DownloadError as error:
            raise ModelUnavailable(f"{ref} can't be downloaded: {error}") from error

    async def load(self, key: ModelKey[T], again: bool = True) -> Loaded[T]:
        """Loads a model. again: whether to download a damaged one once more. Raises ModelUnavailable."""
        ref, path = key.ref, await self.fetch(key.ref)
        try:
            async with self._one_load:
                return await asyncio.to_thread(self._open, key, path)
        except ModelDamaged as error:
            log.warning("%s is damaged: %s", ref, error)
            files = ref.files[1:] if isinstance(error, _OtherFileDamaged) and ref.files[1:] else ref.files[:1]
            if not (again and await asyncio.to_thread(self._hub.invalidate, ref, files)):
                how = "the service downloads it again" if ref.is_known else "put it there again"
                raise ModelUnavailable(f"{ref} is damaged; delete {path.parent} and {how}") from error
        except MemoryError as error:
            how = "give the service or its container more, or choose a smaller model"
            raise ModelUnavailable(f"there is not enough memory to load {ref}: {how}") from error
        except Exception as error:
            log.debug("loading failed", exc_info=True)
            raise ModelUnavailable(f"{ref} can't be loaded: {first_line(error)}") from error
        return await self.load(key, again=False)

    def _open(self, key: ModelKey[T], path: Path) -> Loaded[T]:
        """Opens the session while it reads the files beside the model, such as a large vocabulary."""
        started, stamp, before = time.perf_counter(), stamp_of(key.ref, path), anonymous_mb()
        with ThreadPoolExecutor() as opener:
            opening = opener.submit(self._open_session, key.ref, path)
            try:
                model = key.load(ScheduledSession(str(key.ref), opening, self._scheduler), path.parent)
            except (MemoryError, ModelDamaged):
                raise
            except Exception as error:  # tokenizers has no error class of its own
                opening.result()  # an error of the model file itself comes first
                raise _OtherFileDamaged(f"{path.parent}: {first_line(error)}") from error
            opening.result()
        variant = f" ({key.ref.variant})" if key.ref.variant else ""
        log.info("loaded %s%s in %.2f s", key.ref, variant, time.perf_counter() - started)
        return Loaded(key, model, path, stamp, max(anonymous_mb() - before, 0.0))

    def _open_session(self, ref: ModelRef, path: Path) -> Session:
        try:
            return self._runtime.open(variant_of(path, ref.variant))
        except ModelDamaged as error:
            if not ref.variant:
                raise
            again = f"`mt-photos-ml models optimize {ref.name} PHOTOS` makes it again"  # the original is intact
            raise RuntimeError(f"its {ref.variant} variant is damaged; {again}") from error


def stamp_of(ref: ModelRef, path: Path) -> Stamp:
    """The stamp of a model's files, without missing ones. path: of the model file."""
    files = [variant_of(path, ref.variant), *(path.parents[1] / file for file in ref.files[1:])]
    found = [file.stat() for file in files if file.is_file()]
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
