# SPDX-License-Identifier: AGPL-3.0-only
"""Downloads one file over HTTP: resumes it after a break, abandons a silent server within seconds, checks the result.

It does not use huggingface_hub, whose lists of files would come through other proxies. Measured with 0.36 and 2.4:
huggingface_hub discards a piece of 10 MiB that breaks off, so that a slow link makes no progress, and takes 23 s to
abandon a mirror that refuses connections, minutes for a silent one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from ..machine.files import has_git_sha1, has_sha256, size_of
from . import network
from .network import BrokenOffError, SourceError, open_url, translate_source_errors

PAUSE_SECONDS = 1.0  # until a transfer that broke off is resumed
WORTHWHILE_BYTES = 1_000_000
TRIES = 3  # transfers in a row with less than WORTHWHILE_BYTES until an endpoint is abandoned


@dataclass(frozen=True)
class RemoteFile:
    """A file to download. path: below the model's folder. size, sha256, git_sha1: as published, if known. git_sha1 is
    Git's hash of the content, which Hugging Face gives for small files."""

    path: str
    address: str
    size: int | None
    sha256: str | None
    git_sha1: str | None = None

    def is_right(self, path: Path) -> bool:
        """Whether the file at this path is the published one, as far as is known."""
        if self.sha256:
            return has_sha256(path, self.sha256)
        return self.git_sha1 is None or has_git_sha1(path, self.git_sha1)


def download(file: RemoteFile, staged: Path, on_bytes: Callable[[], None]) -> None:
    """Completes a staged file and checks it. on_bytes: called after every piece. Raises SourceError, OSError."""
    resumed = size_of(staged) > 0
    fruitless = 0
    while True:
        before = size_of(staged)
        try:
            _receive(file, staged, on_bytes)
            break
        except BrokenOffError as error:
            fruitless = 0 if size_of(staged) - before >= WORTHWHILE_BYTES else fruitless + 1
            if fruitless == TRIES:
                error.args = (f"{file.path} broke off {TRIES} times in a row: {error}",)
                raise
        time.sleep(PAUSE_SECONDS)
    if not file.is_right(staged):
        staged.unlink()
        if not resumed:
            raise SourceError(f"{file.path} differs from the published file (checksum)")
        download(file, staged, on_bytes)  # the resumed part may have been bad


@translate_source_errors()
def _receive(file: RemoteFile, staged: Path, on_bytes: Callable[[], None]) -> None:
    """Makes one transfer, from the end of the staged file. Raises BrokenOffError if it ends early."""
    if file.size is not None and size_of(staged) > file.size:
        staged.unlink()
    start = size_of(staged)
    if start == file.size:
        staged.touch()  # an empty file is complete before it exists
        return
    try:
        answer = open_url(file.address, f"bytes={start}-" if start else None)
    except SourceError as error:
        if not start or error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        staged.unlink()  # the published file is shorter
        raise BrokenOffError("it refused the range that was asked for") from None
    with answer, staged.open("ab") as target:
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            start = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise BrokenOffError("it sent another range than was asked for")
        target.truncate(start)
        length = answer.headers.get("Content-Length")
        end = file.size if file.size is not None else start + int(length) if length else None
        try:
            while piece := answer.read1(1 << 16):
                target.write(piece)
                on_bytes()
        except TimeoutError:
            raise BrokenOffError(f"no data for {network.STALL_SECONDS:g} s") from None
        received = target.tell()
        if end is not None and received > end:
            target.truncate(0)
        if end is not None and received != end:
            raise BrokenOffError(f"it sent {received} of {end} bytes")
