# SPDX-License-Identifier: AGPL-3.0-only
"""Fetching models into the cache: mirrors in turn, resumed, checked, put in place whole or not at all."""

import errno
import fcntl
import hashlib
import http.client
import importlib.util
import logging
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from threading import Thread
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from .catalog import KNOWN, OCR, OCR_MODELS, OCR_RELEASE, Part

DEFAULT_ENDPOINTS = ("https://huggingface.co", "https://hf-mirror.com")
ANSWER_SECONDS = 6.0
"""How long an endpoint may take to begin an answer, from the look-up of its name to the first line."""
STALL_SECONDS = 20.0
"""How long a transfer may bring no byte."""
TRIES = 3
"""Transfers in a row that bring next to nothing before an endpoint is given up."""
PAUSE_SECONDS = 1.0
LOG_SECONDS = 5.0
CHECKSUMS = "SHA256SUMS"

Progress = Callable[[Part, int, int], None]
"""Called a few times a second with the bytes that are here and all bytes there will be."""

_OTHER_FORMATS = (".armnn", ".rknn", ".onnx")
_WORTH_GOING_ON = 1_000_000
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}

_log = logging.getLogger("mt_photos_ml")
_T = TypeVar("_T")


class DownloadError(RuntimeError):
    """A model is not here and can't be had: what was tried, what came of it, what to do. For a person to read.

    The message does not begin with the name of the part; who shows it knows which it is.
    """


class _Unusable(Exception):
    """An endpoint can't give the file; the message says why, in words."""


class _Broken(_Unusable):
    """A transfer ended early; the next goes on where it ended."""


@dataclass(frozen=True)
class _File:
    """A file to be fetched: where it belongs in the model's folder, its address, what the publisher says of it."""

    path: str
    address: str
    size: int | None
    sha256: str | None


class Hub:
    """Where models come from. Holds no state: any number of threads and processes may fetch into one cache at once."""

    def __init__(
        self,
        cache: Path,
        endpoint: str | None = None,
        *,
        endpoints: Sequence[str] = DEFAULT_ENDPOINTS,
        ocr_release: str = OCR_RELEASE,
        progress: Progress | None = None,
    ) -> None:
        """endpoint: the one of HF_ENDPOINT, asked alone. progress: is told instead of the log how far a download is."""
        self.cache = cache
        self.endpoints = tuple(address.rstrip("/") for address in ([endpoint] if endpoint else endpoints))
        self.ocr_release = ocr_release.rstrip("/")
        self.progress = progress

    def fetch(self, part: Part) -> Path:
        """The path of the part's model.onnx, after downloading what lacks. Raises DownloadError."""
        model = self._folder(part) / part.files[0]
        if not (missing := part.missing(self.cache)):
            return model
        if part.name not in KNOWN[part.folder]:
            raise DownloadError(
                f"{part.name} is not a model that can be downloaded, and {_listed(missing)} lacks in "
                f"{self._folder(part)}. Put it there, or choose a model by its right name."
            )
        carried = _carried(part)
        try:
            with self._locked(part):
                if carried and part.missing(self.cache):
                    self._copy(part, carried)
                elif part.missing(self.cache):
                    self._download(part)
        except OSError as error:
            if carried:
                return carried
            raise DownloadError(
                f"It can't be stored: {error.strerror or error} ({error.filename or self._folder(part)}). "
                "Make the folder writable and the disk large enough, or let MACHINE_LEARNING_CACHE_FOLDER name another."
            ) from None
        return model

    def discard(self, part: Part) -> bool:
        """Removes a model file that could not be loaded, with its checksum. True where it can be fetched again.

        False, and nothing is touched, where fetching would not help: a model of the user's own, a file that has the
        publisher's checksum, a cache that can't be written.
        """
        model = self._folder(part) / part.files[0]
        if part.name not in KNOWN[part.folder] or not self._folder(part).is_dir():
            return False
        try:
            with self._locked(part):
                spoiled = self._spoiled(part)
                if model.is_file() and part.files[0] in self._checksums(part) and not spoiled:
                    return False
                for path in {part.files[0], *spoiled}:
                    (self._folder(part) / path).unlink(missing_ok=True)
                self._record(part, dict.fromkeys((part.files[0], *spoiled)))
        except OSError:
            return False
        return True

    def verify(self, part: Part) -> str | None:
        """None where the part is whole, as far as checksums are known; or what is wrong with it, in words."""
        if missing := part.missing(self.cache):
            return f"{_listed(missing)} lacks in {self._folder(part)}"
        if spoiled := self._spoiled(part):
            return f"{_listed(spoiled)} in {self._folder(part)} is not what was published (another SHA-256)"
        return None

    def _folder(self, part: Part) -> Path:
        return self.cache / part.folder / part.name

    def _staging(self, part: Part) -> Path:
        return self._folder(part) / ".partial" / part.kind

    @contextmanager
    def _locked(self, part: Part) -> Iterator[None]:
        """One thread of one process at a time in this model's folder."""
        self._folder(part).mkdir(parents=True, exist_ok=True)
        with (self._folder(part) / ".lock").open("w") as lock:
            with suppress(OSError):  # some network shares know no locks: a second download there is only waste
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _download(self, part: Part) -> None:
        failures = []
        for source in (self.ocr_release,) if part.folder == OCR else self.endpoints:
            try:
                self._transfer(part, _offered(part, source), source)
                return
            except DownloadError:
                raise
            except Exception as error:  # what a library raises for a bad answer is not ours to list
                if _of_the_disk(error):
                    raise
                failures.append(f"{source}: {_reason(error)}")
        missing, folder = _listed(part.missing(self.cache)), self._folder(part)
        if part.folder == OCR:
            address = f"{self.ocr_release}/{OCR_MODELS[part.name][part.kind].path}"
            remedy = f"Let HTTPS_PROXY name a proxy that reaches it, or save {address} as {folder / part.files[0]}."
        else:
            remedy = (
                "Let HF_ENDPOINT name a mirror that can be reached, "
                f"or put {missing} of https://huggingface.co/{_repository(part)} into {folder}."
            )
        raise DownloadError(f"No source could serve it ({'; '.join(failures)}). {remedy}")

    def _transfer(self, part: Part, files: Sequence[_File], source: str) -> None:
        lacking = [file for file in files if not (self._folder(part) / file.path).is_file()]
        staged = {self._staging(part) / file.path: file for file in lacking}
        for path in staged:
            path.parent.mkdir(parents=True, exist_ok=True)
        total = sum(file.size or 0 for file in lacking)
        needed = total - sum(map(_size, staged))
        free = shutil.disk_usage(self._folder(part)).free
        if needed > free:
            raise DownloadError(
                f"It needs {_megabytes(needed)} MB, but {self.cache} has only {_megabytes(free)} MB free. "
                "Make room, or let MACHINE_LEARNING_CACHE_FOLDER name a folder on a larger disk."
            )
        meter = _Meter(part, list(staged), total, source, self.progress)
        for path, file in staged.items():
            _bring(file, path, meter)
        self._place(part, lacking)
        meter.finish()

    def _copy(self, part: Part, carried: Path) -> None:
        """From RapidOCR's wheel into the cache."""
        staged = self._staging(part) / part.files[0]
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(carried, staged)
        self._place(part, [_File(part.files[0], "", None, None)])

    def _place(self, part: Part, files: Sequence[_File]) -> None:
        """From the staging folder to where they belong, the model file last: where it is, the part is whole."""
        folder, staging = self._folder(part), self._staging(part)
        for file in files:
            with (staging / file.path).open("rb") as whole:
                os.fsync(whole.fileno())  # else a power cut could leave an empty file under the right name
        # without a size in the list nobody said what the file should be, and a checksum would prove nothing
        self._record(
            part, {file.path: file.sha256 or _sha256(staging / file.path) for file in files if file.size is not None}
        )
        for file in sorted(files, key=lambda file: file.path == part.files[0]):
            (folder / file.path).parent.mkdir(exist_ok=True)
            (staging / file.path).replace(folder / file.path)
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # another part's half files are still in it
            staging.parent.rmdir()

    def _checksums(self, part: Part) -> dict[str, str]:
        """SHA-256 of the part's files, as far as it is known: by the catalogue, or recorded at the download."""
        if part.folder == OCR:
            known = OCR_MODELS.get(part.name, {}).get(part.kind)
            return {part.files[0]: known.sha256} if known else {}
        recorded = self._recorded(part).items()
        return {path: sha256 for path, sha256 in recorded if path in part.files or path.startswith(f"{part.kind}/")}

    def _spoiled(self, part: Part) -> list[str]:
        known = self._checksums(part).items()
        return [path for path, sha256 in known if not _matches(self._folder(part) / path, sha256)]

    def _recorded(self, part: Part) -> dict[str, str]:
        try:
            lines = (self._folder(part) / CHECKSUMS).read_text().splitlines()
        except (OSError, ValueError):
            return {}
        return {path: sha256 for sha256, found, path in (line.partition("  ") for line in lines) if found}

    def _record(self, part: Part, changes: Mapping[str, str | None]) -> None:
        """Into the file that `sha256sum -c` reads; None strikes a file out."""
        before = self._recorded(part)
        after = {path: sha256 for path, sha256 in {**before, **changes}.items() if sha256}
        if part.folder == OCR or after == before:
            return
        target = self._folder(part) / CHECKSUMS
        half = target.with_name(f".{CHECKSUMS}")
        half.write_text("".join(f"{sha256}  {path}\n" for path, sha256 in sorted(after.items())))
        half.replace(target)


class _Meter:
    """Tells how far a download is, by the size of the files in the staging folder."""

    def __init__(self, part: Part, staged: Sequence[Path], total: int, source: str, progress: Progress | None) -> None:
        self._part, self._staged, self._total, self._source, self._progress = part, staged, total, source, progress
        self._interval = 0.25 if progress else LOG_SECONDS
        self._began = self._told = time.monotonic()
        self._told_bytes = self._here()

    def tick(self) -> None:
        """To be called with every piece that comes in."""
        elapsed = time.monotonic() - self._told
        if elapsed < self._interval:
            return
        here = self._here()
        if self._progress:
            self._progress(self._part, here, max(here, self._total))
        else:
            _log.info(
                "downloading %s: %s of %s MB (%d%%), %.1f MB/s, from %s",
                self._part,
                _megabytes(here),
                _megabytes(max(here, self._total)),
                100 * here / max(here, self._total, 1),
                max(0, here - self._told_bytes) / elapsed / 1e6,
                self._source,
            )
        self._told, self._told_bytes = self._told + elapsed, here

    def finish(self) -> None:
        """The last word: all is in place."""
        if self._progress:
            self._progress(self._part, self._total, self._total)
        else:
            seconds = time.monotonic() - self._began
            _log.info(
                "downloaded %s: %s MB in %.0f s, from %s", self._part, _megabytes(self._total), seconds, self._source
            )

    def _here(self) -> int:
        return sum(map(_size, self._staged))


def _repository(part: Part) -> str:
    return f"immich-app/{part.name}"


def _offered(part: Part, source: str) -> list[_File]:
    """The files of the part that a source has, with what it says of them. Raises whatever comes of asking."""
    if part.folder == OCR:
        known = OCR_MODELS[part.name][part.kind]
        address = f"{source}/{known.path}"
        with _open(address, "bytes=0-0") as answer:
            length = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length")
        return [_File(part.files[0], address, int(length) if length else None, known.sha256)]

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, hf_hub_url  # it takes long to import, and most starts need no download

    # without a token: the repositories are public, and a mirror is not to be trusted with one
    ask = HfApi(endpoint=source, token=False).model_info
    found = _soon(lambda: ask(_repository(part), timeout=ANSWER_SECONDS, files_metadata=True))
    files = [
        _File(
            file.rfilename,
            hf_hub_url(_repository(part), file.rfilename, revision=found.sha, endpoint=source),
            file.size,
            file.lfs.sha256 if file.lfs else None,
        )
        for file in found.siblings or ()
        if _wanted(part, file.rfilename)
    ]
    if lacking := set(part.files) - {file.path for file in files}:
        raise _Unusable(f"its {_repository(part)} has no {_listed(sorted(lacking))}")
    return files


def _wanted(part: Part, path: str) -> bool:
    """Whether the part needs a file of the repository: what onnxruntime reads, with weights beside the model file."""
    if path in part.files:
        return True
    folder, _, name = path.rpartition("/")
    return folder == part.kind and not name.startswith(".") and not name.endswith(_OTHER_FORMATS)


def _bring(file: _File, staged: Path, meter: _Meter) -> None:
    """Completes a staged file and checks it. Raises _Unusable, or what the network or the disk raised."""
    resumed = _size(staged) > 0
    fruitless = 0
    while True:
        before = _size(staged)
        try:
            _receive(file, staged, meter)
            break
        except (OSError, http.client.HTTPException, _Broken) as error:
            if isinstance(error, HTTPError) or _of_the_disk(error):
                raise
            fruitless = 0 if _size(staged) - before >= _WORTH_GOING_ON else fruitless + 1
            if fruitless == TRIES:
                raise _Unusable(f"{file.path} broke off {TRIES} times in a row, {_reason(error)}") from None
        time.sleep(PAUSE_SECONDS)
    if file.sha256 and not _matches(staged, file.sha256):
        staged.unlink()
        if not resumed:
            raise _Unusable(f"{file.path} is not what was published (another SHA-256)")
        _bring(file, staged, meter)  # the half that was here may have been the bad one


def _receive(file: _File, staged: Path, meter: _Meter) -> None:
    """One transfer, from where the staged file ends. Raises _Broken where it ends early."""
    start = _size(staged)
    if start == file.size:
        staged.touch()  # an empty file is whole before it is there
        return
    if file.size is not None and start > file.size:
        staged.unlink()
        start = 0
    try:
        answer = _open(file.address, f"bytes={start}-" if start else None)
    except HTTPError as error:
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        staged.unlink()
        raise _Broken("the file there is a shorter one") from None
    with answer, staged.open("ab") as target:
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _Broken("it sent another piece than was asked for")
        target.truncate(start)
        length = answer.headers.get("Content-Length")
        end = file.size if file.size is not None else start + int(length) if length else None
        try:
            while piece := answer.read1(1 << 16):
                target.write(piece)
                meter.tick()
        except TimeoutError:
            raise _Broken(f"no byte came for {STALL_SECONDS:g} s") from None
        here = target.tell()
        if end is not None and here > end:
            target.truncate(0)
        if end is not None and here != end:
            raise _Broken(f"{here} of {end} bytes came")


def _open(address: str, byte_range: str | None) -> http.client.HTTPResponse:
    headers = {"User-Agent": "mt-photos-ml"} | ({"Range": byte_range} if byte_range else {})
    request = Request(address, headers=headers)
    answer = _soon(lambda: urlopen(request, timeout=STALL_SECONDS))
    assert isinstance(answer, http.client.HTTPResponse)
    return answer


def _soon(call: Callable[[], _T]) -> _T:
    """What the call returns or raises, or TimeoutError after ANSWER_SECONDS.

    In a thread, because a time limit on a socket holds for one step on one address, not for the look-up of the name,
    and a name that is blocked may have many addresses. A thread that is left behind ends with its own time limits.
    """
    answer: Future[_T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=work, name="hub", daemon=True).start()
    return answer.result(ANSWER_SECONDS)


def _of_the_disk(error: BaseException) -> bool:
    if not isinstance(error, OSError) or isinstance(error, URLError):
        return False
    return error.filename is not None or error.errno in _DISK_ERRORS


def _reason(error: BaseException) -> str:
    """Why an endpoint did not serve, in words: by the first thing in the chain of errors that says it."""
    link: BaseException | None = error
    while link is not None:
        # urllib's errors have a code; those of huggingface_hub a response, of requests or of httpx by its version
        status = getattr(link, "code", None) or getattr(getattr(link, "response", None), "status_code", None)
        if status in http.client.responses:
            return f"HTTP {status} {http.client.responses[status]}"
        if isinstance(link, _Unusable):
            return str(link)
        if type(link).__name__ == "OfflineModeIsEnabled":
            return "HF_HUB_OFFLINE is set"
        for kind, words in _WORDS:
            if isinstance(link, kind):
                return words
        link = link.__cause__ or link.__context__
    return f"no usable answer ({type(error).__name__})"


_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "its name is not known here (DNS)"),
    (ConnectionRefusedError, "connection refused"),
    (ConnectionError, "the connection was cut"),
    (http.client.HTTPException, "the connection was cut"),
    (ssl.SSLError, "no secure connection (TLS)"),
    (TimeoutError, "no answer in time"),
)


def _carried(part: Part) -> Path | None:
    """The OCR model in the installed RapidOCR wheel, found without importing it; None where it carries another."""
    known = OCR_MODELS.get(part.name, {}).get(part.kind) if part.folder == OCR else None
    spec = importlib.util.find_spec("rapidocr") if known and known.in_wheel else None
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for name in known.in_wheel if known else ():
            path = Path(folder) / "models" / name
            if known and _matches(path, known.sha256):
                return path
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: Path, sha256: str) -> bool:
    return path.is_file() and _sha256(path) == sha256


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 9.5e6 else f"{count / 1e6:.0f}"


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths)
