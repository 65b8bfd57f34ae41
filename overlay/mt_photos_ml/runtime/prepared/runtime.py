# SPDX-License-Identifier: AGPL-3.0-only
"""Prepares models for this processor: optimises each once and packs its weights in a file that is mapped, not read.

onnxruntime itself writes and opens them, by public session options. The files are beside the model, in
`prepared/KEY/{model.onnx, weights.bin, tried.npz, record.json}`. KEY identifies the model's files, this onnxruntime and
this processor; a folder of that name is complete.
"""

import json
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import Lock
from typing import Any

from ...machine.files import locked, sync
from .. import PlainSession, Runtime, Session, Tensors
from .fingerprint import Fingerprint, cache_key, fingerprint, model_files
from .write import MODEL, REFUSED, PrepareError, check_answer

log = logging.getLogger("mt_photos_ml")

FOLDER = "prepared"
"""The folder beside a model for its prepared forms."""

_MIN_BYTES = 1_000_000  # smaller models are not worth it
_MAX_GROWTH = 2.2  # size of a prepared form at most, as a multiple of the model's
_FINAL_STATUSES = (REFUSED, -signal.SIGSEGV, -signal.SIGFPE, -signal.SIGILL)  # another attempt would end the same way
_REASONS = {-9: "there was not enough memory to prepare it", -signal.SIGSEGV: "the attempt crashed"}  # -9: SIGKILL
_ABANDONED_SECONDS = 3600.0  # without a new file in a half-written folder, until its writer is taken for dead


class PreparedRuntime:
    """Opens the prepared form of models that have one, and writes it. Several processes may share a cache."""

    def __init__(self, runtime: Runtime, one_thread: Runtime, cache: Path, threads: int) -> None:
        """runtime: for inferences on `threads` threads; one_thread: on one. cache: only models in it are prepared."""
        self._runtime, self._one_thread, self._cache, self._threads = runtime, one_thread, cache, threads
        self._lacking: set[Path] = set()  # prepared forms to write, of models opened without one
        self._given_up: set[Path] = set()
        self._child: Popen[str] | None = None
        self._closed = False

    def close(self) -> None:
        """Ends a preparation in progress."""
        self._closed = True
        if child := self._child:
            child.terminate()

    def runs_on(self, model: Path) -> str:
        return self._runtime.runs_on(model)

    def open(self, model: Path) -> Session:
        """Opens the prepared form; the model itself if there is none yet or it runs on a device."""
        session = None
        with suppress(OSError):  # of a missing file: the runtime raises its own error
            if self.runs_on(model) == "CPU" and (folder := self._folder(model)):
                session = self._open_checked(folder)
                if session is None and _read_record(folder) is None and folder not in self._given_up:
                    self._lacking.add(folder)
        return session or self._runtime.open(model)

    def prepare(self, model: Path, shape: Sequence[int]) -> bool:
        """Writes the prepared form of a model that was opened without one, once, in a process of low priority: takes
        seconds to minutes. True if there is one now. shape: of an input that the service gives the model."""
        try:
            folder = self._folder(model)
            if folder is None or folder not in self._lacking:
                return False
            self._lacking.discard(folder)
            self._given_up.add(folder)
            with locked(folder.parent):
                if _read_record(folder) is None:  # else another process wrote it meanwhile
                    self._make(model, folder, shape)
            self._given_up.discard(folder)
            return bool(_read_record(folder))
        except (OSError, PrepareError) as error:
            if not self._closed:
                log.warning("%s is not prepared and takes more memory and time to load: %s", self._name(model), error)
        return False

    def _folder(self, model: Path) -> Path | None:
        """The folder of the prepared form; None for a model that is never prepared. Raises OSError."""
        if not model.is_relative_to(self._cache) or _size(model) < _MIN_BYTES:
            return None
        return model.parent / FOLDER / cache_key(model)

    def _make(self, model: Path, folder: Path, shape: Sequence[int]) -> None:
        """Makes the folder, with an empty record if no attempt can succeed. Raises PrepareError if a later one may."""
        needed, free = int(_MAX_GROWTH * _size(model)), shutil.disk_usage(folder.parent).free
        if needed > free:
            raise PrepareError(f"{folder.parent} has {free // 1_000_000} MB free, {needed // 1_000_000} MB are needed")
        for left in filter(_is_abandoned, folder.parent.glob(".*/")):
            shutil.rmtree(left, ignore_errors=True)
        half = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            files = self._write(model, half, shape)
            (half / "record.json").write_text(json.dumps(files))
            sync(half.iterdir())
            half.chmod(0o755)  # mkdtemp denies other users of the cache access
            if _read_record(folder) is None:  # else another process was faster, on a share without locks
                shutil.rmtree(folder, ignore_errors=True)  # a folder without a record is useless
                half.rename(folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def _write(self, model: Path, half: Path, shape: Sequence[int]) -> dict[str, Fingerprint]:
        """Runs the process that writes the files and returns them; none if the model can never be prepared."""
        log.info("preparing %s, once", self._name(model))
        started = time.perf_counter()
        arguments = [str(model), str(half), str(self._threads), "x".join(map(str, shape))]
        command = [sys.executable, "-m", f"{__package__}.write", *arguments]
        with Popen(command, stdout=DEVNULL, stderr=PIPE, encoding=sys.stderr.encoding, errors="replace") as self._child:  # noqa: S603
            if self._closed:
                self._child.terminate()
            stderr = self._child.communicate()[1].strip()
            status, self._child = self._child.returncode, None
        if status == 0:
            log.info("prepared %s in %.1f s", self._name(model), time.perf_counter() - started)
            return {path.name: fingerprint(path) for path in half.iterdir()}
        reason = stderr.splitlines()[-1] if stderr else _REASONS.get(status, f"the attempt ended with status {status}")
        if status not in _FINAL_STATUSES:
            raise PrepareError(reason)
        log.warning("%s can't be prepared and takes more memory and time to load: %s", self._name(model), reason)
        for path in half.iterdir():
            path.unlink()
        return {}

    def _open_checked(self, folder: Path) -> Session | None:
        """The prepared model, if it is complete and its answers match the original's; deletes a damaged one."""
        if not (record := _read_record(folder)):  # no prepared form, or the model can never be prepared
            return None
        try:
            if any(record[name] != fingerprint(folder / name) for name in record):
                raise ValueError("a file has changed")
            session = self._runtime.open(folder / MODEL)
            check_answer(session, folder)
        except MemoryError:
            raise
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = (str(error) or type(error).__name__).splitlines()[0]
            log.warning("deleted the damaged prepared model %s: %s", folder, reason)
            return None
        return session if self._threads == 1 else _MappedSession(session, lambda: self._one_thread.open(folder / MODEL))

    def _name(self, model: Path) -> Path:
        return model.parent.relative_to(self._cache)


class _MappedSession(PlainSession):
    """A prepared model for several threads and, on demand, for one; both sessions share the mapped weights."""

    def __init__(self, session: Session, open_one_thread: Callable[[], Session]) -> None:
        self.inputs, self.outputs, self.metadata = session.inputs, session.outputs, session.metadata
        self.cores, self.run = session.cores, session.run
        self._open_one_thread = open_one_thread
        self._opening = Lock()
        self._one_thread: Session | None = None

    def choose(self, feed: Tensors, is_busy: bool) -> Session:
        return (self._on_one_thread() if is_busy else None) or self

    def _on_one_thread(self) -> Session | None:
        with self._opening:
            if self._one_thread is None:
                with suppress(Exception):  # its files may have been deleted since; the other session still works
                    self._one_thread = self._open_one_thread()
            return self._one_thread


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The files of a prepared model; {} if it can never be prepared, None if no attempt was made."""
    with suppress(OSError, ValueError):
        record = json.loads((folder / "record.json").read_text())
        return record if isinstance(record, dict) else None
    return None


def _size(model: Path) -> int:
    """Bytes of a model file and of the weights beside it."""
    return sum(path.stat().st_size for path in model_files(model))


def find_stale(folder: Path) -> list[Path]:
    """Useless folders of a model: prepared for another onnxruntime, processor or model file, or left half-written by
    a killed process."""
    stale = [path for path in sorted(folder.glob("*/.int8.partial")) if _is_abandoned(path)]
    for prepared in sorted(folder.glob(f"*/{FOLDER}")):
        kept = cache_key(prepared.parent / MODEL)
        others = (path for path in sorted(prepared.iterdir()) if path.is_dir() and path.name != kept)
        stale += [path for path in others if not path.name.startswith(".") or _is_abandoned(path)]
    return stale


def _is_abandoned(half: Path) -> bool:
    """Whether the process that wrote to a folder is probably dead."""
    with suppress(OSError):  # if it was renamed meanwhile
        return half.stat().st_mtime < time.time() - _ABANDONED_SECONDS
    return False
