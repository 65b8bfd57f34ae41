# SPDX-License-Identifier: AGPL-3.0-only
"""From a model's name to what a task works with: fetched, opened, checked, and mended once where it is damaged."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ..machine.background import run_in_daemon
from ..machine.memory import anonymous_mb
from ..runtime import ModelDamaged, Runtime, Session
from ..runtime.scheduler import CpuScheduler, ScheduledSession
from .catalog import ModelRef
from .hub import DownloadError
from .variants import variant_of

log = logging.getLogger("mt_photos_ml")

_QUARANTINE = 30.0  # seconds during which a model that failed is not tried again

Stamp = tuple[tuple[int, int, int], ...]
"""Of files: when changed, how long, which; other files under the same names have another."""


class Model(Protocol):
    """What a task works with."""

    @property
    def example_shape(self) -> Sequence[int]:
        """Of an input that the task gives it."""
        ...


T = TypeVar("T", bound=Model)
T_co = TypeVar("T_co", bound=Model, covariant=True)


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

    def __init__(self, message: str, retry_after: float = _QUARANTINE) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _BesideDamaged(ModelDamaged):
    """Not the model file itself but what lies beside it, where it has anything beside it."""


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A model, its file, the stamp of the files that it was read from, and by how many MB memory grew as it was."""

    model: T
    path: Path
    stamp: Stamp
    memory_mb: float


class Loader:
    """Loads one model at a time; downloads wait for nobody."""

    def __init__(self, runtime: Runtime, source: Source, scheduler: CpuScheduler) -> None:
        self._runtime, self._source, self._scheduler = runtime, source, scheduler
        self._one_load = asyncio.Lock()
        self._fetching: dict[ModelRef, asyncio.Future[Path]] = {}

    @property
    def fetching(self) -> list[ModelRef]:
        """The models whose files are being looked for or downloaded."""
        return list(self._fetching)

    async def fetch(self, ref: ModelRef) -> Path:
        """The model file, by one download for all who ask meanwhile. Raises DownloadError."""
        if ref not in self._fetching:
            # in a daemon thread, since a download takes minutes: the end of the service must not wait for it
            future = self._fetching[ref] = asyncio.wrap_future(run_in_daemon(lambda: self._source.fetch(ref)))
            future.add_done_callback(lambda _: self._fetching.pop(ref))
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._fetching[ref])

    async def load(self, key: ModelKey[T], again: bool = True) -> Loaded[T]:
        """again: whether a damaged model may be fetched once more. Raises ModelUnavailable."""
        ref = key.ref
        try:
            path = await self.fetch(ref)
            async with self._one_load:
                return await asyncio.to_thread(self._open, key, path)
        except DownloadError as error:
            raise ModelUnavailable(f"{ref} can't be downloaded: {error}") from error
        except ModelDamaged as error:
            log.warning("%s is damaged: %s", ref, error)
            files = ref.files[1:] if isinstance(error, _BesideDamaged) and ref.files[1:] else ref.files[:1]
            if not (again and await asyncio.to_thread(self._source.invalidate, ref, files)):
                raise ModelUnavailable(f"{ref} is damaged; delete {path.parent} and put it there again") from error
        except MemoryError as error:
            raise ModelUnavailable(f"there is not enough memory to load {ref}") from error
        except Exception as error:
            log.debug("loading failed", exc_info=True)
            raise ModelUnavailable(f"{ref} can't be loaded: {first_line(error)}") from error
        return await self.load(key, again=False)

    def _open(self, key: ModelKey[T], path: Path) -> Loaded[T]:
        """The model, whose own files, such as a large vocabulary, are read while its session is opened."""
        started, stamp, before = time.perf_counter(), stamp_of(key.ref, path), anonymous_mb()
        with ThreadPoolExecutor() as opener:
            opening = opener.submit(self._open_session, key.ref, path)
            try:
                model = key.load(ScheduledSession(str(key.ref), opening, self._scheduler), path.parent)
            except (MemoryError, ModelDamaged):
                raise
            except Exception as error:  # tokenizers raises no class of its own
                opening.result()  # what is wrong with the model file itself comes first
                raise _BesideDamaged(f"{path.parent}: {first_line(error)}") from error
            opening.result()
        variant = f" ({key.ref.variant})" if key.ref.variant else ""
        log.info("loaded %s%s in %.2f s", key.ref, variant, time.perf_counter() - started)
        return Loaded(model, path, stamp, max(anonymous_mb() - before, 0.0))

    def _open_session(self, ref: ModelRef, path: Path) -> Session:
        try:
            return self._runtime.open(variant_of(path, ref.variant))
        except ModelDamaged as error:
            if not ref.variant:
                raise
            again = f"`mt-photos-ml models optimize {ref.name} PHOTOS` makes it again"  # the original is not to blame
            raise RuntimeError(f"its {ref.variant} variant is damaged; {again}") from error


def stamp_of(ref: ModelRef, path: Path) -> Stamp:
    """path: of the model file that was fetched. Files that are not there have none."""
    files = [variant_of(path, ref.variant), *(path.parents[1] / file for file in ref.files[1:])]
    found = [file.stat() for file in files if file.is_file()]
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
