# SPDX-License-Identifier: AGPL-3.0-only
"""What a request carries: the file of a form, the text of a JSON body."""

import asyncio
from collections.abc import Callable
from email.message import Message

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.requests import Request

from .replies import BadForm, TooLarge, TooSlow

_SILENCE = 30.0  # seconds without a byte after which an upload is given up
_SLOWEST = 50_000  # bytes a second that an upload must bring on average, once it has taken that long
_MAX_JSON = 1_000_000  # bytes
_MAX_TEXT = 10_000  # characters; a search is a few words, and what is behind the first 77 tokens is cut off anyway


async def read_file(request: Request, field: str = "file") -> bytes:
    """The content of the form's field. Raises BadForm, TooSlow.

    Straight from the parser: the framework's own form writes every photo to a temporary file and reads it back.
    """
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise BadForm(f"expected a form (multipart/form-data) with the photo in the field {field!r}")
    try:
        form = _Form(boundary, field)
        await _each_chunk(request, form.parser.write)
    except FormParserError:
        raise BadForm("the form is damaged") from None
    if form.cut_off:
        raise BadForm("the form was cut off")
    if form.content is None:
        raise BadForm(f"the form has no field {field!r}, which must hold the photo")
    content, form.content = form.content, None  # the form and its parser know each other, and live on for a while
    return content


async def read_text(request: Request) -> str:
    """The text of `{"text": "…"}`. Raises BadForm, TooSlow."""
    body = bytearray()

    def take(chunk: bytes) -> None:
        body.extend(chunk)
        if len(body) > _MAX_JSON:
            raise TooLarge(_MAX_JSON)

    await _each_chunk(request, take)
    try:
        text = orjson.loads(body)["text"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise BadForm('expected JSON such as {"text": "飞机"}')
    return text[:_MAX_TEXT]


async def _each_chunk(request: Request, take: Callable[[bytes], object]) -> None:
    clock, taken = asyncio.get_running_loop().time, 0
    started = clock()
    try:
        async with asyncio.timeout(_SILENCE) as end:
            async for chunk in request.stream():
                take(chunk)
                taken += len(chunk)
                end.reschedule(min(clock(), started + taken / _SLOWEST) + _SILENCE)
    except TimeoutError:
        raise TooSlow from None


class _Form:
    """Keeps one field of a multipart body and lets the others go by."""

    def __init__(self, boundary: str, field: str) -> None:
        self._field = field
        self._name, self._value, self._disposition = b"", b"", b""
        self._parts: list[bytes] | None = None
        self.content: bytes | None = None
        self.parser = MultipartParser(
            boundary,
            {
                "on_header_field": self._on_name,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_data,
                "on_part_end": self._on_part_end,
            },
        )

    @property
    def cut_off(self) -> bool:
        """Whether the body ended within the field."""
        return self._parts is not None

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _on_headers_finished(self) -> None:
        header = Message()
        header["content-disposition"] = self._disposition.decode("utf-8", "replace")
        self._disposition = b""
        wanted = self.content is None and header.get_param("name", header="content-disposition") == self._field
        self._parts = [] if wanted else None

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._parts is not None:
            self._parts.append(data[start:end])

    def _on_part_end(self) -> None:
        if self._parts is not None:
            self.content, self._parts = b"".join(self._parts), None
