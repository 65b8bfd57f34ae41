# SPDX-License-Identifier: AGPL-3.0-only
"""Downloads one file over HTTP: resumes it after a break, gives a silent server up within seconds, checks the result.

huggingface_hub's own transfer is not used. Measured with 0.36 and 2.4: it discards a piece of 10 MiB that breaks off,
so that a slow link gets nowhere, and needs 23 s to give up a mirror that refuses, minutes for a silent one.
"""

import errno
import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ..machine import background
from ..machine.files import has_git_sha1, has_sha256, size_of

ANSWER_SECONDS = 6.0  # from looking up the endpoint's name to the first line of its answer
STALL_SECONDS = 20.0  # without a byte, after which a transfer is broken off
PAUSE_SECONDS = 1.0  # before a transfer that broke off is resumed
WORTHWHILE_BYTES = 1_000_000
TRIES = 3  # transfers in a row with less than WORTHWHILE_BYTES, after which an endpoint is given up

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "its name is not known here (DNS)"),
    (ConnectionRefusedError, "connection refused"),
    (ConnectionError, "the connection was cut"),
    (http.client.HTTPException, "the connection was cut"),
    (ssl.SSLError, "no secure connection (TLS)"),
    (TimeoutError, "no answer in time"),
)

T = TypeVar("T")


class SourceError(Exception):
    """An endpoint can't give a file; the message says why."""


class _BrokenOffError(SourceError):
    """A transfer ended early and can be resumed."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to be downloaded. path: below the model's folder. size, sha256, git_sha1: as published, if known;
    git_sha1, Git's name for the content, is what Hugging Face gives of small files."""

    path: str
    address: str
    size: int | None
    sha256: str | None
    git_sha1: str | None = None

    def is_right(self, path: Path) -> bool:
        """Whether the file at this path is what was published, as far as is known."""
        if self.sha256:
            return has_sha256(path, self.sha256)
        return self.git_sha1 is None or has_git_sha1(path, self.git_sha1)


@contextmanager
def translate_source_errors() -> Iterator[None]:
    """Raises SourceError for any error of a library over a bad answer; passes errors of the disk on."""
    try:
        yield
    except Exception as error:
        if _is_of_the_disk(error):
            raise
        raise SourceError(_reason(error)) from error


@translate_source_errors()
def download(file: RemoteFile, staged: Path, on_bytes: Callable[[], None]) -> None:
    """Completes a staged file and checks it. on_bytes: called after every piece. Raises SourceError, OSError."""
    resumed = size_of(staged) > 0
    fruitless = 0
    while True:
        before = size_of(staged)
        try:
            _receive(file, staged, on_bytes)
            break
        except (OSError, http.client.HTTPException, _BrokenOffError) as error:
            if isinstance(error, HTTPError) or _is_of_the_disk(error):
                raise
            fruitless = 0 if size_of(staged) - before >= WORTHWHILE_BYTES else fruitless + 1
            if fruitless == TRIES:
                raise SourceError(f"{file.path} broke off {TRIES} times in a row, {_reason(error)}") from None
        time.sleep(PAUSE_SECONDS)
    if not file.is_right(staged):
        staged.unlink()
        if not resumed:
            raise SourceError(f"{file.path} is not what was published (another checksum)")
        download(file, staged, on_bytes)  # what was resumed may have been the bad part


def _receive(file: RemoteFile, staged: Path, on_bytes: Callable[[], None]) -> None:
    """Makes one transfer, from the end of the staged file. Raises _BrokenOffError if it ends early."""
    if file.size is not None and size_of(staged) > file.size:
        staged.unlink()
    start = size_of(staged)
    if start == file.size:
        staged.touch()  # an empty file is complete before it exists
        return
    try:
        answer = open_url(file.address, f"bytes={start}-" if start else None)
    except HTTPError as error:
        if not start or error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        staged.unlink()  # the published file is shorter
        raise _BrokenOffError from None
    with answer, staged.open("ab") as target:
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _BrokenOffError("it sent another piece than was asked for")
        target.truncate(start)
        length = answer.headers.get("Content-Length")
        end = file.size if file.size is not None else start + int(length) if length else None
        try:
            while piece := answer.read1(1 << 16):
                target.write(piece)
                on_bytes()
        except TimeoutError:
            raise _BrokenOffError(f"no byte came for {STALL_SECONDS:g} s") from None
        received = target.tell()
        if end is not None and received > end:
            target.truncate(0)
        if end is not None and received != end:
            raise _BrokenOffError(f"{received} of {end} bytes came")


def open_url(address: str, byte_range: str | None) -> http.client.HTTPResponse:
    """The answer to a GET, with its body unread. Raises HTTPError for any status but success."""
    headers = {"User-Agent": "mt-photos-ml"} | ({"Range": byte_range} if byte_range else {})
    request = Request(address, headers=headers)
    try:
        answer: http.client.HTTPResponse = answer_soon(lambda: urlopen(request, timeout=STALL_SECONDS))
    except HTTPError as error:
        error.close()  # it holds the connection
        raise
    return answer


def answer_soon(call: Callable[[], T]) -> T:
    """What the call returns or raises, or TimeoutError after ANSWER_SECONDS. The call runs in a thread, because a
    socket's time limit covers neither the look-up of a name nor its second address."""
    return background.run(call).result(ANSWER_SECONDS)


def _is_of_the_disk(error: BaseException) -> bool:
    if not isinstance(error, OSError) or isinstance(error, URLError):
        return False
    return error.filename is not None or error.errno in _DISK_ERRORS


def _reason(error: BaseException) -> str:
    """Why an endpoint failed, by the first error in the chain that says it."""
    link: BaseException | None = error
    while link is not None:
        # urllib's errors have a code; huggingface_hub's have a response, of requests or httpx depending on its version
        status = getattr(link, "code", None) or getattr(getattr(link, "response", None), "status_code", None)
        if status in http.client.responses:
            return f"HTTP {status} {http.client.responses[status]}"
        if isinstance(link, SourceError):
            return str(link)
        if type(link).__name__ == "OfflineModeIsEnabled":
            return "HF_HUB_OFFLINE is set"
        if reason := next((reason for kind, reason in _REASONS if isinstance(link, kind)), None):
            return reason
        link = link.__cause__ or link.__context__
    return f"no usable answer ({type(error).__name__})"
