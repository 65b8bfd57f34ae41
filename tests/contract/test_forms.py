# SPDX-License-Identifier: AGPL-3.0-only
"""Requests that lack something, come in pieces, or break off. tests/unit/test_forms.py reads odd but valid ones."""

import socket
import struct
from collections.abc import Iterator

import httpx
import pytest

from contract.api import PHOTO_ROUTES, Api
from demo.pictures import colour_photo, text_page
from photos import jpeg

PHOTO = jpeg(colour_photo("red", (160, 120)))
FORM = httpx.Request("POST", "http://form", files={"file": ("photo.jpg", PHOTO, "image/jpeg")})
FORM_TYPE, BODY = FORM.headers["content-type"], FORM.read()

BAD_FORMS = {
    "nothing": ("", b""),
    "no-type": ("", BODY),
    "the-photo-itself": ("image/jpeg", PHOTO),
    "json": ("application/json", b'{"file": "photo.jpg"}'),
    "urlencoded": ("application/x-www-form-urlencoded", b"file=photo.jpg"),
    "no-boundary": ("multipart/form-data", BODY),
    "another-boundary": ("multipart/form-data; boundary=other", BODY),
    "empty": (FORM_TYPE, b""),
    "not-a-form": (FORM_TYPE, b"\x00\xff" * 100),
    "cut-off": (FORM_TYPE, BODY[: len(BODY) // 2]),
    "another-field": (FORM_TYPE, BODY.replace(b'name="file"', b'name="image"')),
    "no-name": (FORM_TYPE, BODY.replace(b'name="file"; ', b"")),
}
BAD_TEXTS = {
    "nothing": b"",
    "not-json": b"text=red",
    "cut-off": b'{"text": "re',
    "not-utf-8": b'{"text": "\xff\xfe"}',
    "no-text": b'{"word": "red"}',
    "null": b'{"text": null}',
    "a-number": b'{"text": 5}',
    "a-list": b'{"text": ["red"]}',
    "no-object": b'["text"]',
    "a-string": b'"text"',
}


def is_told_what_is_wrong(answer: httpx.Response) -> bool:
    told = answer.json()
    return answer.status_code == 422 and told == {"result": [], "msg": told["msg"]} and len(told["msg"].split()) > 3


@pytest.mark.parametrize("route", PHOTO_ROUTES)
@pytest.mark.parametrize("form", BAD_FORMS)
def test_a_form_without_a_photo_is_422_with_the_reason(api: Api, route: str, form: str) -> None:
    kind, body = BAD_FORMS[form]
    assert is_told_what_is_wrong(api.http.post(route, content=body, headers={"content-type": kind} if kind else {}))


@pytest.mark.parametrize("body", BAD_TEXTS)
def test_a_body_without_a_text_is_422_with_the_reason(api: Api, body: str) -> None:
    headers = {"content-type": "application/json"}
    assert is_told_what_is_wrong(api.http.post("/clip/txt", content=BAD_TEXTS[body], headers=headers))


@pytest.mark.parametrize("route", PHOTO_ROUTES)
@pytest.mark.parametrize("size", [1000, 16384])
def test_an_upload_may_be_chunked_without_a_length(api: Api, route: str, size: int) -> None:
    def pieces() -> Iterator[bytes]:
        for start in range(0, len(BODY), size):
            yield BODY[start : start + size]

    answer = api.http.post(route, content=pieces(), headers={"content-type": FORM_TYPE})
    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert answer.json()["result"] == api.result(route, PHOTO)


@pytest.mark.parametrize("route", PHOTO_ROUTES)
@pytest.mark.parametrize("rudely", [False, True], ids=["closing", "resetting"])
def test_a_client_that_disconnects_during_its_upload_does_no_harm(api: Api, route: str, rudely: bool) -> None:
    headers = {"api-key": api.key, "content-type": FORM_TYPE, "content-length": str(len(BODY))}
    for share in (0.0, 0.1, 0.5, 0.99) * 10:
        with api.begun(route, headers) as connection:
            connection.send(BODY[: int(len(BODY) * share)])
            if rudely:  # an RST in place of a FIN
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    page = jpeg(text_page(["Still here"], (320, 120))[0])
    assert [text.replace(" ", "") for text, _ in api.read(page)] == ["Stillhere"]
    assert api.result(route, PHOTO) is not None
