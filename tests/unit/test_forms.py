# SPDX-License-Identifier: AGPL-3.0-only
"""Forms as clients write them, and texts; those that are not right: tests/contract/test_forms.py."""

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, Sequence

import pytest

from mt_photos_ml.api import forms
from mt_photos_ml.api.errors import TooLarge

FORM = "multipart/form-data; boundary=b"
PHOTO = bytes(range(256)) * 40 + b"\r\n--not the boundary\r\n"


def part(name: str, content: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


async def pieces(parts: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
    for part in parts:
        yield part


def read(parts: Sequence[bytes], content_type: str = FORM) -> bytes:
    return asyncio.run(forms.read_file(content_type, pieces(parts)))


def read_text(*parts: bytes) -> str:
    return asyncio.run(forms.read_text(pieces(parts)))


def test_only_the_caller_holds_on_to_the_photo() -> None:
    gc.disable()
    try:
        content = read([part("file", PHOTO) + b"--b--\r\n"])
        assert sys.getrefcount(content) == 2  # the name above, and the question
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [1, 7, 100, 1_000_000])
def test_the_file_is_whole_however_the_body_is_cut(size: int) -> None:
    body = part("other", b"1") + part("file", PHOTO, '; filename="a.jpg"') + part("file", b"2") + b"--b--\r\n"
    assert read([body[i : i + size] for i in range(0, len(body), size)]) == PHOTO


@pytest.mark.parametrize(
    "header",
    [
        'Content-Disposition: form-data; name="file"',
        'content-disposition: FORM-DATA; filename="x.jpg"; name="file"',
        'Content-Type: image/jpeg\r\nContent-Disposition: form-data; name="file"; filename="飞机.jpg"',
        'Content-Disposition: form-data; name="file"; filename="quote\\"d; name=other.jpg"',
    ],
)
def test_the_field_is_known_however_its_header_is_written(header: str) -> None:
    large = PHOTO * 200  # over the limit of a field that is not a file
    body = f"--a b\r\n{header}\r\n\r\n".encode() + large + b"\r\n--a b--\r\n"
    assert read([body], 'multipart/form-data; boundary="a b"') == large


def test_a_text_over_a_megabyte_is_too_large() -> None:
    text = b'{"text": "red"}'
    assert read_text(b" " * (1_000_000 - len(text)), text) == "red"
    with pytest.raises(TooLarge, match="1 MB"):
        read_text(b" " * 600_000, b" " * 600_000)


def test_a_text_may_come_in_pieces_and_is_cut_to_ten_thousand_characters() -> None:
    body = '{"text": "飞机"}'.encode()
    assert read_text(body[:12], body[12:]) == "飞机"
    assert len(read_text(b'{"text": "' + b"a" * 50_000 + b'"}')) == 10_000
