# SPDX-License-Identifier: AGPL-3.0-only
"""What a request carries: forms as clients write them, and what is said of the ones that are not right."""

import asyncio
import gc
import sys
from collections.abc import Sequence

import pytest
from starlette.requests import Request
from starlette.types import Message

from mt_photos_ml.api import forms as upload
from mt_photos_ml.api import uploads as bodies
from mt_photos_ml.api.errors import BadForm, TooLarge, TooSlow
from mt_photos_ml.api.uploads import Bodies

FORM = "multipart/form-data; boundary=b"
PHOTO = bytes(range(256)) * 40 + b"\r\n--not the boundary\r\n"


def part(name: str, content: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


def request(chunks: Sequence[bytes], content_type: str = FORM, *, ends: bool = True) -> Request:
    """A request whose body comes in these pieces; one that never ends goes silent after the last."""
    left = list(chunks)

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or not ends}
        await asyncio.sleep(60)
        raise AssertionError

    headers = [(b"content-type", content_type.encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


async def read_file(asked: Request) -> bytes:
    async with Bodies(1 << 30).receive(asked) as pieces:
        return await upload.read_file(asked.headers["content-type"], pieces)


async def read_text(asked: Request) -> str:
    async with Bodies(1 << 30).receive(asked) as pieces:
        return await upload.read_text(pieces)


def read(chunks: Sequence[bytes], content_type: str = FORM, *, ends: bool = True) -> bytes:
    return asyncio.run(read_file(request(chunks, content_type, ends=ends)))


def test_nobody_but_the_one_who_asked_holds_on_to_the_photo() -> None:
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
        'content-disposition: FORM-DATA; filename="x.jpg"; name="file"',
        "Content-Disposition: form-data; name=file",
        'Content-Type: image/jpeg\r\nContent-Disposition: form-data; name="file"; filename="飞机.jpg"',
        'Content-Disposition: form-data; name="file"; filename="quote\\"d; name=other.jpg"',
    ],
)
def test_the_field_is_known_however_its_header_is_written(header: str) -> None:
    assert read([f"--b\r\n{header}\r\n\r\n".encode() + PHOTO + b"\r\n--b--\r\n"]) == PHOTO


def test_a_boundary_may_stand_in_quotes() -> None:
    body = part("file", PHOTO).replace(b"--b", b"--a b", 1) + b"--a b--\r\n"
    assert read([body], 'multipart/form-data; boundary="a b"') == PHOTO


def test_a_photo_in_a_field_without_a_file_name_may_be_as_large_as_any() -> None:
    large = PHOTO * 200
    assert len(large) > 2_000_000
    assert read([part("file", large) + b"--b--\r\n"]) == large


def test_an_empty_file_is_a_file() -> None:
    assert read([part("file", b"") + b"--b--\r\n"]) == b""


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("application/octet-stream", PHOTO, "multipart/form-data"),
        ("multipart/form-data", PHOTO, "multipart/form-data"),
        ("", PHOTO, "multipart/form-data"),
        ("multipart/form-data; boundary=" + "b" * 300, PHOTO, "^the form is damaged$"),
        (FORM, part("image", PHOTO) + b"--b--\r\n", "no field 'file'"),
        (FORM, b"--b--\r\n", "no field 'file'"),
        (FORM, b"", "no field 'file'"),
        (FORM, b"no boundary at all", "damaged"),
        (FORM, part("file", PHOTO)[:-200], "cut off"),
    ],
)
def test_a_form_that_is_not_right_is_told_what_is_expected(content_type: str, body: bytes, words: str) -> None:
    with pytest.raises(BadForm, match=words):
        read([body], content_type)


def test_an_upload_that_stops_coming_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SILENCE", 0.05)
    with pytest.raises(TooSlow):
        read([part("file", PHOTO)], ends=False)


def test_an_upload_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SILENCE", 0.2)

    async def drip() -> None:
        body = iter(part("file", PHOTO))

        async def receive() -> Message:
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": bytes([next(body)]), "more_body": True}

        headers = [(b"content-type", FORM.encode())]
        await read_file(Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive))

    with pytest.raises(TooSlow):
        asyncio.run(drip())


def test_a_text_that_is_no_search_is_too_large() -> None:
    text = b'{"text": "red"}'
    assert asyncio.run(read_text(request([b" " * (1_000_000 - len(text)), text]))) == "red"
    with pytest.raises(TooLarge, match="1 MB"):
        asyncio.run(read_text(request([b" " * 600_000, b" " * 600_000])))


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'"text"', b"null", b'{"text": 5}', b'{"text": null}', b"{", b"\xff\xfe"]
)
def test_a_text_that_is_none_is_told_what_is_expected(body: bytes) -> None:
    with pytest.raises(BadForm) as told:
        asyncio.run(read_text(request([body])))
    assert str(told.value) == 'expected JSON such as {"text": "飞机"}'


def test_a_text_may_come_in_pieces_and_is_cut_to_what_a_search_can_be() -> None:
    body = '{"text": "飞机"}'.encode()
    assert asyncio.run(read_text(request([body[:12], body[12:]]))) == "飞机"
    assert len(asyncio.run(read_text(request([b'{"text": "' + b"a" * 50_000 + b'"}'])))) == 10_000
