# SPDX-License-Identifier: AGPL-3.0-only
"""One file over HTTP: resumed where it broke off, given up in seconds where nothing comes, checked, its progress told.

huggingface_hub's own transfer is not used: measured with 0.36 and 2.4, it keeps nothing of a piece of 10 MiB that
breaks off, so that a slow link never gets on, and takes 23 s to give up a mirror that refuses, minutes a silent one.
"""

import errno
import hashlib
import http.client
import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from threading import Thread
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from .catalog import Part

ANSWER_SECONDS = 6.0
"""How long an endpoint may take to begin an answer, from the look-up of its name to the first line."""
STALL_SECONDS = 20.0
"""How long a transfer may bring no byte."""
TRIES = 3
"""Transfers in a row that bring next to nothing before an endpoint is given up."""
PAUSE_SECONDS = 1.0
"""Before a transfer that broke off is taken up again."""
LOG_SECONDS = 5.0
"""Between two lines of the log about one download."""
Progress = Callable[[Part, int, int], None]
"""Called a few times a second with the bytes that are here and all bytes there will be."""

_WORTH_GOING_ON = 1_000_000
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}

_log = logging.getLogger("mt_photos_ml")
_T = TypeVar("_T")


class Unusable(Exception):
    """An endpoint can't give the file; the message says why, in words."""


class _Broken(Unusable):
    """A transfer ended early; the next goes on where it ended."""


@dataclass(frozen=True)
class File:
    """A file to be fetched: where it belongs in the model's folder, its address, what the publisher says of it."""

    path: str
    address: str
    size: int | None
    sha256: str | None


class Meter:
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
                megabytes(here),
                megabytes(max(here, self._total)),
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
                "downloaded %s: %s MB in %.0f s, from %s", self._part, megabytes(self._total), seconds, self._source
            )

    def _here(self) -> int:
        return sum(map(size_of, self._staged))


def bring(file: File, staged: Path, meter: Meter) -> None:
    """Completes a staged file and checks it. Raises Unusable, or what the network or the disk raised."""
    resumed = size_of(staged) > 0
    fruitless = 0
    while True:
        before = size_of(staged)
        try:
            _receive(file, staged, meter)
            break
        except (OSError, http.client.HTTPException, _Broken) as error:
            if isinstance(error, HTTPError) or of_the_disk(error):
                raise
            fruitless = 0 if size_of(staged) - before >= _WORTH_GOING_ON else fruitless + 1
            if fruitless == TRIES:
                raise Unusable(f"{file.path} broke off {TRIES} times in a row, {reason(error)}") from None
        time.sleep(PAUSE_SECONDS)
    if file.sha256 and not matches(staged, file.sha256):
        staged.unlink()
        if not resumed:
            raise Unusable(f"{file.path} is not what was published (another SHA-256)")
        bring(file, staged, meter)  # the half that was here may have been the bad one


def _receive(file: File, staged: Path, meter: Meter) -> None:
    """One transfer, from where the staged file ends. Raises _Broken where it ends early."""
    start = size_of(staged)
    if start == file.size:
        staged.touch()  # an empty file is whole before it is there
        return
    if file.size is not None and start > file.size:
        staged.unlink()
        start = 0
    try:
        answer = open_address(file.address, f"bytes={start}-" if start else None)
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


def open_address(address: str, byte_range: str | None) -> http.client.HTTPResponse:
    headers = {"User-Agent": "mt-photos-ml"} | ({"Range": byte_range} if byte_range else {})
    request = Request(address, headers=headers)
    answer = soon(lambda: urlopen(request, timeout=STALL_SECONDS))
    assert isinstance(answer, http.client.HTTPResponse)
    return answer


def soon(call: Callable[[], _T]) -> _T:
    """What the call returns or raises, or TimeoutError after ANSWER_SECONDS.

    In a thread, because a time limit on a socket holds for one step on one address, not for the look-up of the name,
    and a name that is blocked may have many addresses. A thread that is left behind ends with its own time limits.
    """
    return in_daemon(call).result(ANSWER_SECONDS)


def in_daemon(call: Callable[[], _T]) -> Future[_T]:
    """The call in a thread of its own that no end of the process waits for."""
    answer: Future[_T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=work, name="hub", daemon=True).start()
    return answer


def of_the_disk(error: BaseException) -> bool:
    if not isinstance(error, OSError) or isinstance(error, URLError):
        return False
    return error.filename is not None or error.errno in _DISK_ERRORS


def reason(error: BaseException) -> str:
    """Why an endpoint did not serve, in words: by the first thing in the chain of errors that says it."""
    link: BaseException | None = error
    while link is not None:
        # urllib's errors have a code; those of huggingface_hub a response, of requests or of httpx by its version
        status = getattr(link, "code", None) or getattr(getattr(link, "response", None), "status_code", None)
        if status in http.client.responses:
            return f"HTTP {status} {http.client.responses[status]}"
        if isinstance(link, Unusable):
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


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}" if count < 9.5e6 else f"{count / 1e6:.0f}"
