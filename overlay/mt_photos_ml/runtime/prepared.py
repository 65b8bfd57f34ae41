# SPDX-License-Identifier: AGPL-3.0-only
"""Models prepared for this processor: optimised once, their weights packed in a file that is mapped, not read.

onnxruntime writes and opens them itself, by public session options. Beside a model there is then
`prepared/KEY/{model.onnx, weights.bin, tried.npz, record.json}`; KEY stands for the model's files, this onnxruntime and
this processor, and a folder under that name is whole.
"""

import fcntl
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import Opened, Session

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger("mt_photos_ml")

FOLDER = "prepared"

_FORM = 1  # of what is written; another number, and everything is made again
_LEAST = 1_000_000  # bytes of a model that is worth it
_GROWTH = 2.2  # the prepared form of a model is at most so much larger
_MAPPED = 65_536  # bytes of a weight that goes into the file; smaller ones are not worth a page, and some crash 1.31
_SIDE = 64  # of axes that the model leaves free
_TYPES = {"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(int32)": "i4", "tensor(int64)": "i8"}

_TELLING = ("flags", "Features", "CPU implementer", "CPU part")  # lines of /proc/cpuinfo, of x86 and of ARM
_REFUSED = 30  # exit status of the attempt that finds that a model can't be prepared; gunicorn has a meaning for 3, 4
_FOR_GOOD = (_REFUSED, -signal.SIGSEGV, -signal.SIGFPE, -signal.SIGILL)
_ENDS = {-signal.SIGKILL: "there was not enough memory to prepare it", -signal.SIGSEGV: "the attempt crashed"}
_HOUR = 3600.0


class Unprepared(RuntimeError):
    """A model can't be prepared here; the message says why."""


class Prepared:
    """Opens models by their prepared form, which it makes where there is none. Several processes may share a cache."""

    def __init__(self, cache: Path) -> None:
        """cache: models elsewhere are opened as they are."""
        self._cache = cache
        self._given_up: set[Path] = set()
        self._child: subprocess.Popen[str] | None = None
        self._closed = False

    def close(self) -> None:
        """Ends the preparation that is under way; the model that it is for is not opened any more."""
        self._closed = True
        if (child := self._child) is not None:
            child.terminate()

    def open(self, model: Path, opened: Callable[[Path, int], Opened], threads: int) -> Opened:
        """The model by its prepared form, or as it is where that can't be had.

        opened: opens a model file, to be run by so many threads.
        """
        session = None
        if model.is_relative_to(self._cache):
            try:
                session = self._opened(model, opened, threads)
            except (OSError, Unprepared) as error:
                if self._closed:
                    raise RuntimeError("the service is ending") from error
                log.warning("%s is used as it is, with more memory and time to load: %s", self._name(model), error)
        return opened(model, threads) if session is None else session

    def _opened(self, model: Path, opened: Callable[[Path, int], Opened], threads: int) -> Opened | None:
        if _size(model) < _LEAST:
            return None
        folder = model.parent / FOLDER / key(model)
        session = _tried(folder, opened, threads)
        if session is None and _record(folder) is None and folder not in self._given_up:
            self._given_up.add(folder)  # if it fails; else each load after a pause would try, and fail, again
            self._prepare(model, folder, threads)
            self._given_up.discard(folder)
            session = _tried(folder, opened, threads)
        return session

    def _prepare(self, model: Path, folder: Path, threads: int) -> None:
        """Once for all processes, in a process of its own: its memory goes with it, and should it crash, we don't."""
        with _locked(folder.parent) as lock:
            if _record(folder) is not None:  # by another process, while this one waited
                return
            needed, free = int(_GROWTH * _size(model)), shutil.disk_usage(folder.parent).free
            if needed > free:
                raise Unprepared(f"{folder.parent} has {free // 1_000_000} MB free, {needed // 1_000_000} are needed")
            for left in folder.parent.glob(".*/"):
                if left.stat().st_mtime < time.time() - _HOUR:  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
            half = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                files = self._written(model, half, threads, lock)
                (half / "record.json").write_text(json.dumps(files))
                for path in half.iterdir():
                    with path.open("rb") as whole:
                        os.fsync(whole.fileno())  # else a power cut could leave an empty file under the right name
                half.chmod(0o755)  # mkdtemp keeps it from other users of the cache
                if _record(folder) is None:
                    shutil.rmtree(folder, ignore_errors=True)  # without a record it is nothing
                try:
                    half.rename(folder)
                except OSError:
                    if _record(folder) is None:  # else another was quicker, where there are no locks
                        raise
            finally:
                shutil.rmtree(half, ignore_errors=True)

    def _written(self, model: Path, half: Path, threads: int, lock: int) -> dict[str, list[int | str]]:
        """What was written to the folder; nothing where this model can't be prepared, ever."""
        log.info("preparing %s, once", self._name(model))
        started = time.perf_counter()
        command = [sys.executable, "-m", __name__, str(model), str(half), str(threads)]
        with subprocess.Popen(  # noqa: S603
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=[lock],  # it stays locked for as long as somebody writes, this process alive or not
        ) as child:
            self._child = child
            if self._closed:
                child.terminate()
            said = child.communicate()[1].strip()
            self._child = None
        if child.returncode == 0:
            log.info("prepared %s in %.1f s", self._name(model), time.perf_counter() - started)
            return {path.name: seen(path) for path in half.iterdir()}
        reason = said.splitlines()[-1] if said else _ENDS.get(child.returncode, f"it ended with {child.returncode}")
        if child.returncode not in _FOR_GOOD:
            raise Unprepared(reason)
        log.warning("%s can't be prepared and is used as it is: %s", self._name(model), reason)
        for path in half.iterdir():
            path.unlink()
        return {}

    def _name(self, model: Path) -> Path:
        return model.parent.relative_to(self._cache)


class _Mapped:
    """A prepared model: for several threads, and on demand for one, since both share the mapped weights."""

    def __init__(self, session: Session, opened: Callable[[], Session]) -> None:
        self.inputs, self.metadata, self.run = session.inputs, session.metadata, session.run
        self._opened = opened
        self._opening = Lock()
        self._one_thread: Session | None = None

    @property
    def one_thread(self) -> Session | None:
        with self._opening:
            if self._one_thread is None:
                with suppress(Exception):  # its files may have been deleted since; the other session is still good
                    self._one_thread = self._opened()
            return self._one_thread


def _tried(folder: Path, opened: Callable[[Path, int], Opened], threads: int) -> Opened | None:
    """The prepared model, if it is whole and answers as the original did; what is damaged is removed."""
    record = _record(folder)
    if not record:  # there is none, or it can't be prepared
        return None
    try:
        if any(record[name] != seen(folder / name) for name in record):
            raise ValueError("a file has changed")
        session = opened(folder / "model.onnx", threads)
        with np.load(folder / "tried.npz") as tried:
            feed = {name.removeprefix("in "): tried[name] for name in tried.files if name.startswith("in ")}
            expected = [tried[f"out {i}"] for i in range(len(tried.files) - len(feed))]
        if not _alike(session.run(feed), expected):
            raise ValueError("it answers otherwise than the original")
    except MemoryError:
        raise
    except Exception as error:
        shutil.rmtree(folder)
        said = (str(error) or type(error).__name__).splitlines()[0]
        log.warning("%s was damaged and is removed: %s", folder, said)
        return None
    return session if threads == 1 else _Mapped(session, lambda: opened(folder / "model.onnx", 1))


def _record(folder: Path) -> dict[str, Any] | None:
    """The files of a prepared model; {} where it can't be prepared, None where nobody tried."""
    try:
        record = json.loads((folder / "record.json").read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """The lock's descriptor: it is held until this and every process that was given it have closed it."""
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        with suppress(OSError):  # some network shares know no locks; then two prepare, each in a folder of its own
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _size(model: Path) -> int:
    """Bytes of a model file and of the weights beside it."""
    return sum(path.stat().st_size for path in _files(model))


def stale(folder: Path) -> list[Path]:
    """What lies below a folder and is of no use: models prepared for another onnxruntime or processor, or of files that
    have changed since, and what a killed `models optimize` left."""
    found = sorted(folder.rglob(".int8.partial"))
    for prepared in sorted(folder.rglob(FOLDER)):
        model = prepared.parent / "model.onnx"
        kept = key(model) if model.is_file() else ""
        found += [path for path in sorted(prepared.iterdir()) if path.is_dir() and path.name != kept]
    return found


def key(model: Path) -> str:
    """Stands for the files of a model, this onnxruntime and this processor."""
    import onnxruntime as ort

    digest = sha256(f"{_FORM} {ort.__version__} {ort.get_build_info()} {_instructions()}".encode())
    for path in _files(model):
        digest.update(f"{path.name} {path.stat().st_mtime_ns} {seen(path)}".encode())
    return digest.hexdigest()[:16]


def _files(model: Path) -> list[Path]:
    """The model file and those beside it, which may hold its weights."""
    return sorted(
        path for path in model.parent.iterdir() if path.is_file() and path.suffix != ".json" and path.name[0] != "."
    )


def seen(path: Path) -> list[int | str]:
    """A file's size and a digest of 16 places in it, its end among them: reading all takes a second for the largest."""
    length, digest = path.stat().st_size, sha256()
    piece = min(16_384, length)
    with path.open("rb") as file:
        for i in range(16):
            file.seek(i * (length - piece) // 15)
            digest.update(file.read(piece))
    return [length, digest.hexdigest()[:16]]


def _instructions() -> str:
    """What sets processors apart whose kernels want their weights packed differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    return f"{platform.machine()} {sorted({line for line in lines if line.startswith(_TELLING)})}"


def _alike(answers: list[NDArray[Any]], expected: list[NDArray[Any]]) -> bool:
    return len(answers) == len(expected) and all(
        a.shape == e.shape and np.allclose(a, e, rtol=1e-3, atol=1e-4, equal_nan=True)
        for a, e in zip(answers, expected, strict=True)
    )


def _feed(session: "onnxruntime.InferenceSession") -> dict[str, NDArray[Any]]:
    """An input of the model's own shapes."""
    random, feed = np.random.default_rng(0), {}
    for node in session.get_inputs():
        if node.type not in _TYPES:
            raise Unprepared(f"its input {node.name} is a {node.type}")
        shape = [n if isinstance(n, int) and n > 0 else _SIDE if i else 1 for i, n in enumerate(node.shape)]
        values = random.normal(size=shape) if "float" in node.type else random.integers(0, 2, shape)
        feed[node.name] = values.astype(_TYPES[node.type])
    return feed


def _write(model: Path, folder: Path, threads: int) -> None:
    """Writes model.onnx, weights.bin and tried.npz to a folder. Raises Unprepared where what it wrote is no good."""
    import onnxruntime as ort

    def session(path: Path, **entries: str) -> "onnxruntime.InferenceSession":
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if entries:
            options.optimized_model_filepath = str(folder / "model.onnx")
        for name, value in entries.items():
            options.add_session_config_entry(f"session.{name}", value)
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    original = session(
        model,
        optimized_model_external_initializers_file_name="weights.bin",
        optimized_model_external_initializers_min_size_in_bytes=str(_MAPPED),
        save_external_prepacked_constant_initializers="1",
    )
    feed = _feed(original)
    expected = original.run(None, feed)
    del original
    if not _alike(session(folder / "model.onnx").run(None, feed), expected):
        raise Unprepared("prepared, it answers otherwise than the original")
    arrays: dict[str, Any] = {f"in {name}": value for name, value in feed.items()}
    arrays |= {f"out {i}": value for i, value in enumerate(expected)}
    np.savez(folder / "tried.npz", **arrays)


if __name__ == "__main__":
    try:
        _write(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except Unprepared as refused:
        print(refused, file=sys.stderr)
        sys.exit(_REFUSED)
    except Exception as failed:
        sys.exit(f"{type(failed).__name__}: {failed}")
