# SPDX-License-Identifier: AGPL-3.0-only
"""Reads a request's body: the file in a form, or the text in JSON."""

import json
from collections.abc import AsyncGenerator
from email.message import Message

from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .errors import BadForm, TooLarge

_MAX_JSON_BYTES = 1_000_000
_MAX_TEXT_CHARACTERS = 10_000  # a search is a few words, and models read 77 tokens or fewer
_UNLIMITED_BYTES = 1 << 40  # BodyLimitMiddleware limits the whole body


class _FormParser(MultiPartParser):
    spool_max_size = _UNLIMITED_BYTES  # keeps the photo in memory; starlette writes files over 1 MB to disk


async def read_file(content_type: str, pieces: AsyncGenerator[bytes, None]) -> bytes:
    """Returns the content of the form's field `file`. Raises BadForm, and what the pieces of the body raise."""
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise BadForm("expected a form (multipart/form-data) with the photo in the field 'file'")
    # the parser decodes a field that has no file name; latin-1 decodes and encodes any bytes
    try:
        headers = Headers({"content-type": f'multipart/form-data; charset=latin-1; boundary="{boundary}"'})
        form = await _FormParser(headers, _without_preamble(pieces, boundary), max_part_size=_UNLIMITED_BYTES).parse()
    except (MultiPartException, FormParserError, UnicodeEncodeError):
        raise BadForm("the form is damaged") from None
    try:
        for value in form.getlist("file"):
            return await value.read() if isinstance(value, UploadFile) else value.encode("latin-1")
    finally:
        await form.close()
    raise BadForm("the form has no field 'file', which must hold the photo, or was cut off before its end")


async def _without_preamble(pieces: AsyncGenerator[bytes, None], boundary: str) -> AsyncGenerator[bytes, None]:
    """Skips the preamble, all that comes before the first boundary (RFC 2046, 5.1.1)."""
    start, seen = b"\n--" + boundary.encode("latin-1"), b"\n"
    async for piece in pieces:
        seen += piece
        if (found := seen.find(start)) >= 0:
            yield seen[found + 1 :]
            break
        seen = seen[-len(start) :]
    async for piece in pieces:
        yield piece


async def read_text(pieces: AsyncGenerator[bytes, None]) -> str:
    """Returns the text of `{"text": "…"}`, with U+FFFD instead of half an emoji, if a client has cut one. Raises
    BadForm, TooLarge, and what the pieces of the body raise."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > _MAX_JSON_BYTES:
            raise TooLarge(_MAX_JSON_BYTES)
    try:
        text = json.loads(body)["text"]  # orjson refuses half an emoji, and a byte order mark
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise BadForm('expected JSON such as {"text": "飞机"}')
    return text[:_MAX_TEXT_CHARACTERS].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
