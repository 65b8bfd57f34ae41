# SPDX-License-Identifier: AGPL-3.0-only
"""Forms and JSON as clients write them. tests/contract/test_forms.py sends wrong ones."""

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, Sequence

import pytest

from mt_photos_ml.api import forms
from mt_photos_ml.api.errors import BadForm, TooLarge

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


def test_only_the_caller_keeps_a_reference_to_the_photo() -> None:
    gc.disable()
    try:
        content = read([part("file", PHOTO) + b"--b--\r\n"])
        assert sys.getrefcount(content) == 2  # `content`, and getrefcount's argument
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [1, 7, 100, 1_000_000])
def test_the_first_file_is_complete_whatever_else_is_in_the_form_and_however_it_is_split(size: int) -> None:
    others = part("name", b"1") + part("thumb", b"2", '; filename="b.jpg"')
    body = others + part("file", PHOTO, '; filename="a.jpg"') + part("file", b"3") + b"--b--\r\n"
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
def test_the_field_is_found_however_its_header_is_written(header: str) -> None:
    large = PHOTO * 200  # over the limit of a field that is not a file
    body = f"--a b\r\n{header}\r\n\r\n".encode() + large + b"\r\n--a b--\r\n"
    assert read([body], 'multipart/form-data; boundary="a b"') == large


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
@pytest.mark.parametrize(
    "before", [b"A form in many parts.\r\n", b"\r\n\r\n", b"\n", b"--c\r\nnot --b\r\n", b"x" * 200_000]
)
def test_bytes_before_the_first_boundary_are_ignored(before: bytes, size: int) -> None:
    body = before + b"\r\n" + part("file", PHOTO) + b"--b--\r\n"
    assert read([body[i : i + size] for i in range(0, len(body), size)]) == PHOTO


def test_a_boundary_that_is_not_ascii_is_a_damaged_form() -> None:
    with pytest.raises(BadForm, match="damaged"):
        read([part("file", PHOTO)], "multipart/form-data; boundary*=utf-8''%E9%A3%9E")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'\xef\xbb\xbf{"text": "red"}', "red"),
        (rb'{"text": "\ud83d"}', "\ufffd"),
        (rb'{"text": "red \ud83d"}', "red \ufffd"),
        (rb'{"text": "\ude00 red", "more": "\ud83d"}', "\ufffd red"),
        (rb'{"text": "\ud83d\ude00"}', "😀"),
        (rb'{"text": "\ud83d\ud83d\ude00"}', "\ufffd😀"),
        (b'{"text": "' + b"a" * 9_999 + rb'\ud83d\ude00"}', "a" * 9_999 + "😀"),
    ],
)
def test_a_byte_order_mark_is_skipped_and_half_an_emoji_is_replaced(body: bytes, text: str) -> None:
    assert read_text(body) == text


@pytest.mark.parametrize(
    "body", [b"[" * 400_000, b'{"text":' * 90_000, b'{"text": ' + b"1" * 900_000 + b"}", b"\xff\xfe"]
)
def test_json_that_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(BadForm, match="expected JSON"):
        read_text(body)


def test_a_body_over_a_megabyte_is_too_large() -> None:
    text = b'{"text": "red"}'
    assert read_text(b" " * (1_000_000 - len(text)), text) == "red"
    with pytest.raises(TooLarge, match="1 MB"):
        read_text(b" " * 600_000, b" " * 600_000)


def test_a_text_may_come_in_pieces_and_is_cut_to_ten_thousand_characters() -> None:
    body = '{"text": "飞机"}'.encode()
    assert read_text(body[:12], body[12:]) == "飞机"
    assert len(read_text(b'{"text": "' + b"a" * 50_000 + b'"}')) == 10_000
