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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from threading import Thread
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from .catalog import CLIP, KNOWN, OCR, OCR_MODELS, OCR_RELEASE, OcrFile, Part

DEFAULT_ENDPOINTS = ("https://huggingface.co", "https://hf-mirror.com")
ANSWER_SECONDS = 6.0
"""How long an endpoint may take to begin an answer, from the look-up of its name to the first line."""
STALL_SECONDS = 20.0
"""How long a transfer may bring no byte."""
TRIES = 3
"""Transfers in a row that bring next to nothing before an endpoint is given up."""
PAUSE_SECONDS = 1.0
LOG_SECONDS = 5.0
STAGING = ".partial"
CHECKSUMS = "SHA256SUMS"

Progress = Callable[[Part, int, int], None]
"""Called a few times a second with the bytes that are here and all bytes there will be."""

_OTHER_FORMATS = (".armnn", ".rknn", ".onnx")
_WORTH_GOING_ON = 1_000_000
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}

_log = logging.getLogger("mt_photos_ml")
_T = TypeVar("_T")


class DownloadError(RuntimeError):
    """A model is not here and can't be had: what was tried, what came of it, what to do. For a person to read."""


class _Unusable(Exception):
    """An endpoint can't give the file; the message says why, in words."""


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
                f"{part} is not a model that can be downloaded, and {_listed(missing)} lacks in {self._folder(part)}. "
                "Put it there, or choose a model by its right name."
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
                f"{part} can't be stored: {error.strerror or error} ({error.filename or self._folder(part)}). "
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
                known = self._checksums(part)
                spoiled = [path for path, sha256 in known.items() if not _has(self._folder(part) / path, sha256)]
                if model.is_file() and part.files[0] in known and not spoiled:
                    return False
                for path in {part.files[0], *spoiled}:
                    (self._folder(part) / path).unlink(missing_ok=True)
                self._record(part, dict.fromkeys((part.files[0], *spoiled)))
        except OSError:
            return False
        return True

    def verify(self, part: Part) -> str | None:
        """None where the part is all there and as its publisher made it, as far as checksums are known; or what is wrong."""
        if missing := part.missing(self.cache):
            return None if _carried(part) else f"{_listed(missing)} lacks in {self._folder(part)}"
        wrong = [path for path, sha256 in self._checksums(part).items() if not _has(self._folder(part) / path, sha256)]
        return f"{_listed(wrong)} in {self._folder(part)} is damaged: not what was published" if wrong else None

    def _folder(self, part: Part) -> Path:
        return self.cache / part.folder / part.name

    @contextmanager
    def _locked(self, part: Part) -> Iterator[None]:
        """One thread of one process at a time in this model's folder."""
        self._folder(part).mkdir(parents=True, exist_ok=True)
        with (self._folder(part) / ".lock").open("w") as lock:
            with suppress(OSError):  # some network shares know no locks; there a second download is only waste
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _copy(self, part: Part, carried: Path) -> None:
        staged = self._staged(part, part.files[0])
        shutil.copyfile(carried, staged)
        self._place(part, [part.files[0]])

    def _download(self, part: Part) -> None:
        failures = []
        for endpoint in self._sources(part):
            try:
                files = _soon(lambda: self._offered(part, endpoint))  # noqa: B023 (called at once)
                self._transfer(part, files, endpoint)
                return
            except DownloadError:
                raise
            except Exception as error:
                if _of_the_disk(error):
                    raise
                failures.append(f"{endpoint}: {_reason(error)}")
        origin = f"{self.ocr_release}/{OCR_MODELS[part.name][part.kind].path}"
        raise DownloadError(f"")

    def _sources(self, part: Part) -> tuple[str, ...]:
        return (self.ocr_release,) if part.folder == OCR else self.endpoints
