# SPDX-License-Identifier: AGPL-3.0-only
"""JPEG XL is read if Pillow's plugin is installed; a picture that is too large is refused before it is decoded."""

import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.pictures import colour_photo
from mt_photos_ml.photo import Photo
from mt_photos_ml.photo.decoders import DecoderMissing, PhotoError
from photos import encoded, exif

needs_the_plugin = pytest.mark.skipif(find_spec("pillow_jxl") is None, reason="pillow-jxl-plugin is not installed")


def jxl(picture: Image.Image, **options: object) -> bytes:
    import pillow_jxl  # noqa: F401

    picture.save(buffer := BytesIO(), "JXL", **options)
    return buffer.getvalue()


def picture(size: tuple[int, int]) -> Image.Image:
    made = colour_photo("orange", size).convert("RGB")
    made.paste("white", (3, 3, 9, 9))
    return made


def header(height: int, width: int) -> bytes:
    """The beginning of a file without a container. Each side takes 30 bits."""
    bits, at = 0, 1
    for count, value in ((2, 3), (30, height - 1), (3, 0), (2, 3), (30, width - 1)):
        bits, at = bits | value << at, at + count
    return b"\xff\x0a" + bits.to_bytes(20, "little")


@needs_the_plugin
@pytest.mark.parametrize("size", [(64, 64), (256, 256), (161, 120), (320, 180), (40, 30), (12, 900)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_jpeg_xl_is_read_as_it_was_written(size: tuple[int, int], mode: str) -> None:
    drawn = picture(size).convert(mode)
    photo = Photo.open(jxl(drawn, lossless=True, effort=1))
    assert str(photo) == f"JXL {size[0]}x{size[1]}"
    np.testing.assert_array_equal(photo.pixels(1).rgb, np.asarray(drawn.convert("RGB")))


@needs_the_plugin
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_stored_as_jpeg_xl_is_turned_like_the_jpeg(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(picture((160, 120)), "JPEG", exif=exif(orientation), quality=95))
    with Image.open(path) as opened:
        photo, expected = Photo.open(jxl(opened, lossless_jpeg=True, effort=1)), Photo.open(path.read_bytes())
    assert (photo.width, photo.height) == (expected.width, expected.height)
    np.testing.assert_allclose(photo.pixels(1).rgb.astype(int), expected.pixels(1).rgb, atol=2)


@needs_the_plugin
def test_the_orientation_in_exif_is_ignored() -> None:
    photo = Photo.open(jxl(picture((160, 120)), lossless=True, exif=exif(6)))
    assert (photo.width, photo.height) == photo.pixels(1).rgb.shape[1::-1] == (160, 120)


@needs_the_plugin
def test_a_jpeg_xl_of_a_huge_size_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(PhotoError, match="height or width out of range"):
        Photo.open(header(1 << 30, 1 << 29))


@needs_the_plugin
@pytest.mark.parametrize("kept", [2, 14, 40, 200])
def test_a_damaged_jpeg_xl_is_refused(kept: int) -> None:
    with pytest.raises(PhotoError):
        Photo.open(jxl(picture((160, 120)), exif=exif(1))[:kept]).pixels(1)


def test_without_the_plugin_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(DecoderMissing, match="JPEG XL photos need the package pillow-jxl-plugin"):
        Photo.open(header(120, 160))
