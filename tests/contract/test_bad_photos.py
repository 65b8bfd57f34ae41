# SPDX-License-Identifier: AGPL-3.0-only
"""The reply to a photo that can't be used is final: 200, an empty result, and a message for the photo's owner."""

import re

import numpy as np
import pytest
from PIL import Image

import photos
from contract.api import PHOTO_ROUTES, Api
from demo.pictures import colour_photo, group_photo, text_page

TOO_LARGE = "height or width out of range"
PHOTO = colour_photo("red", (320, 240))
PNG, WEBP = (photos.encoded(PHOTO, kind) for kind in ("PNG", "WEBP"))
NO_PHOTO = {
    "empty": b"",
    "a-byte": b"\xff",
    "text": "这不是照片。This is no photo.\n".encode() * 50,
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<<>>\n%%EOF\n",
    "html": b"<!doctype html><html><title>404</title><body>Not found</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "video": b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(200),
    "zeros": bytes(10_000),
    "signature-of-a-jpeg": b"\xff\xd8\xff\xe0",
    "signature-of-a-png": b"\x89PNG\r\n\x1a\n",
    "png-with-noise-in-it": PNG[:2000] + bytes(500) + PNG[2500:],
    "jpeg-that-ends-in-its-header": photos.jpeg(PHOTO)[:200],
    "png-cut-before-its-pixels": PNG[:60],
    "webp-cut-in-its-header": WEBP[:30],
    "camera-raw-without-a-preview": photos.camera_raw(b"", (3000, 2000)),
    "tiff-of-half-precision": photos.tiff(PHOTO, "float16"),
    "gif-cut-in-its-header": photos.encoded(PHOTO, "GIF")[:12],
}
TOO_LARGE_PHOTOS = {
    "png-of-60000": photos.that_claims("PNG", 60_000, 60_000),
    "a-pixel-too-wide": photos.jpeg(Image.new("RGB", (10_001, 20), "red")),
}


def told(api: Api, route: str, photo: bytes) -> str:
    """The message about a photo that can't be used."""
    answer = api.post_photo(route, photo)
    assert answer.status_code == 200
    message = answer.json()["msg"]
    assert answer.json() == {"result": [], "msg": message}
    return str(message)


def is_for_people(message: str) -> bool:
    technical = re.search(r"/|\\|Traceback|cv2|PIL|object at 0x|Error|\n", message)
    return technical is None and re.search(r"[a-z]+ [a-z]+ [a-z]+", message) is not None


@pytest.mark.parametrize("route", PHOTO_ROUTES)
@pytest.mark.parametrize("name", NO_PHOTO)
def test_a_file_that_is_no_photo_gets_a_message_for_people(api: Api, route: str, name: str) -> None:
    message = told(api, route, NO_PHOTO[name])
    assert is_for_people(message), message
    assert message != TOO_LARGE


@pytest.mark.parametrize("route", PHOTO_ROUTES)
@pytest.mark.parametrize("name", TOO_LARGE_PHOTOS)
def test_a_photo_over_ten_thousand_pixels_a_side_is_out_of_range(api: Api, route: str, name: str) -> None:
    assert told(api, route, TOO_LARGE_PHOTOS[name]) == TOO_LARGE


@pytest.mark.parametrize("kind", ["jpeg-baseline", "jpeg-progressive", "png", "gif", "webp-lossy", "webp-lossless"])
def test_a_truncated_photo_is_used_as_far_as_it_goes(api: Api, kind: str) -> None:
    lines = [f"Platform {number}" for number in range(10, 20)]
    page = photos.IN_COLOUR[kind](text_page(lines, (480, 640))[0])
    half = page[: len(page) // 2]
    found = [text.replace(" ", "") for text, _ in api.read(half)]
    assert found[:4] == [line.replace(" ", "") for line in lines[:4]]
    assert np.linalg.norm(api.see(half)) == pytest.approx(1, abs=1e-4)
    assert api.faces(half) == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_bytes_after_a_photo_are_ignored(api: Api, kind: str) -> None:
    photo = photos.encoded(group_photo((320, 160), [4, 5])[0], kind)
    longer = photo + b"garbage \x00\xff\xd8" * 1000
    for route in PHOTO_ROUTES:
        assert api.result(route, longer) == api.result(route, photo)
