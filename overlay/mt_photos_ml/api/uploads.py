# SPDX-License-Identifier: AGPL-3.0-only
"""Receives uploads in memory, within a limit on all their bytes, without tying up a worker. A stalled upload affects
only its own client."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass

from starlette.requests import Request

from ..engine.workers import Busy
from .errors import TooSlow

UPLOAD_IDLE_TIMEOUT = 30.0
"""Seconds without a byte until an upload is aborted."""
YIELD_SECONDS = 2.0
"""Seconds without a byte until an upload may be aborted to make room for another."""
MAX_UPLOADS = 512
"""Simultaneous uploads to all processes of a service."""

_MIN_BYTES_PER_SECOND = 50_000  # on average, once an upload has taken UPLOAD_IDLE_TIMEOUT


@dataclass(eq=False)
class _Upload:
    """One upload. started, last: when it began and when its last byte arrived, by the loop's clock. size: bytes in
    memory."""

    started: float
    last: float
    size: int = 0
    timeout: asyncio.Timeout | None = None

    @property
    def deadline(self) -> float:
        """When it is aborted unless another byte arrives."""
        return min(self.last, self.started + self.size / _MIN_BYTES_PER_SECOND) + UPLOAD_IDLE_TIMEOUT


class Uploads:
    """The uploads of all requests, each from its first byte until its request is answered."""

    def __init__(self, max_bytes: int, max_uploads: int = MAX_UPLOADS) -> None:
        """max_bytes: of all uploads together. max_uploads: simultaneous ones."""
        self.max_bytes, self.max_uploads = max_bytes, max_uploads
        self.held_bytes = 0
        self._coming: dict[_Upload, None] = {}

    @property
    def coming(self) -> int:
        """How many uploads are being received."""
        return len(self._coming)

    @property
    def is_full(self) -> bool:
        """Whether another upload has room only if one of these is aborted."""
        return self.coming >= self.max_uploads

    @contextlib.asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """The pieces of a request's body, which count as held until the context ends. If there is no room, aborts the
        upload that was silent longest, if it was silent for YIELD_SECONDS; otherwise raises Busy. The pieces raise Busy
        too, and TooSlow if the upload stalls."""
        if self.is_full:
            self._abort_silent(self._coming)
        now = asyncio.get_running_loop().time()
        upload = _Upload(now, now)
        self._coming[upload] = None
        try:
            yield self._pieces(upload, request)
        finally:
            self._forget(upload)

    async def _pieces(self, upload: _Upload, request: Request) -> AsyncGenerator[bytes, None]:
        pieces = request.stream()
        while True:
            try:
                async with asyncio.timeout_at(upload.deadline) as upload.timeout:
                    piece = await anext(pieces)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise TooSlow from None
            finally:
                upload.timeout = None
            if upload not in self._coming:  # it was aborted just after this piece arrived
                raise TooSlow
            upload.last = asyncio.get_running_loop().time()
            while self.held_bytes + len(piece) > self.max_bytes:
                self._abort_silent(other for other in self._coming if other.size)
            upload.size += len(piece)
            self.held_bytes += len(piece)
            yield piece
        self._coming.pop(upload, None)

    def _abort_silent(self, uploads: Iterable[_Upload]) -> None:
        """Aborts the one of these uploads that was silent longest. Raises Busy if none was silent for YIELD_SECONDS."""
        silent = min(uploads, key=lambda upload: upload.last, default=None)
        now = asyncio.get_running_loop().time()
        if silent is None or silent.timeout is None or silent.last > now - YIELD_SECONDS:
            raise Busy("there is no room for more uploads")
        if not silent.timeout.expired():
            silent.timeout.reschedule(now)
        self._forget(silent)

    def _forget(self, upload: _Upload) -> None:
        self._coming.pop(upload, None)
        self.held_bytes -= upload.size
        upload.size = 0
