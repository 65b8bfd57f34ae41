# SPDX-License-Identifier: AGPL-3.0-only
"""Photos with damaged metadata: if OpenCV still reads the same pixels, so do we."""

import random
import re
import struct
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from demo.pictures import colour_photo
from mt_photos_ml.photo import Photo
from mt_photos_ml.photo.decoders import PhotoError
from photos import chunk, encoded
from trust.tally import count

Ranges = Iterator[tuple[int, int]]

PICTURE = colour_photo("orange", (160, 120)).convert("RGB")
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf/></x:xmpmeta>'
TIFF_PICTURE = {*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, 317, *range(320, 326), 338, 339}
TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}


def exif() -> bytes:
    block = Image.Exif()
    block.update({271: "Maker", 272: "Model", 305: "Software" * 5, 306: "2024:01:01 00:00:00"})
    block.get_ifd(0x8769)[0x927C] = b"maker" * 40
    block.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return block.tobytes()


def png() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "hello " * 20)
    text.add_text("History", "hello " * 200, zip=True)
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    data = encoded(PICTURE, "PNG", pnginfo=text, icc_profile=ICC, exif=exif(), dpi=(72, 72))
    gamma = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"tIME", bytes(7)) + chunk(b"cHRM", bytes(32))
    return data[:33] + gamma + data[33:]


def in_png(data: bytes) -> Ranges:
    at = 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind not in (b"IHDR", b"IDAT", b"IEND"):
            yield at, at + 12 + length
        at += 12 + length


def a_jpeg() -> bytes:
    photoshop = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", 10) + b"0123456789"
    data = encoded(PICTURE, "JPEG", quality=92, exif=exif(), icc_profile=ICC, comment=b"hello", xmp=XMP, dpi=(72, 72))
    return data[:2] + b"\xff\xed" + struct.pack(">H", len(photoshop) + 2) + photoshop + data[2:]


def in_jpeg(data: bytes) -> Ranges:
    at = 2
    while data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        if 0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE:
            yield at, at + 2 + length
        at += 2 + length


def webp() -> bytes:
    return encoded(PICTURE, "WEBP", quality=90, exif=exif(), icc_profile=ICC, xmp=XMP)


def in_webp(data: bytes) -> Ranges:
    for match in re.finditer(rb"ICCP|EXIF|XMP ", data):
        yield match.start(), match.end() + 4 + struct.unpack_from("<I", data, match.end())[0]


def a_tiff() -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.update({270: "what it shows " * 9, 271: "Maker", 282: 72.0, 305: "Software" * 4, 315: "artist" * 4, 700: XMP})
    return encoded(PICTURE, "TIFF", tiffinfo=tags, icc_profile=ICC, compression="tiff_lzw")


def in_tiff(data: bytes) -> Ranges:
    (at,) = struct.unpack_from("<I", data, 4)
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        tag, kind, number, place = struct.unpack_from("<HHII", data, entry)
        if tag not in TIFF_PICTURE:
            yield entry + 2, entry + 12
            if (length := TIFF_BYTES[kind] * number) > 4:
                yield place, place + length


def damaged(data: bytes, ranges: list[tuple[int, int]], chance: random.Random) -> bytes:
    """The file with one to four changes in these ranges, half of them at the start of a range, where its length is."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        start, end = chance.choice(ranges)
        at = chance.randrange(start, min(end, start + chance.choice([12, 1 << 30])))
        new = chance.choice([bytes([chance.randrange(256)]), b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\1"])
        changed[at : min(at + len(new), end)] = new[: end - at]
    return bytes(changed)


def as_opencv_reads_it(data: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None":
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if picture is None else np.asarray(picture, np.uint8)


@pytest.mark.parametrize(
    ("make", "parts"),
    [(png, in_png), (a_jpeg, in_jpeg), (webp, in_webp), (a_tiff, in_tiff)],
    ids=["png", "jpeg", "webp", "tiff"],
)
def test_a_photo_with_damaged_metadata_is_read_if_opencv_reads_it(
    make: Callable[[], bytes], parts: Callable[[bytes], Ranges], long: bool
) -> None:
    data, chance = make(), random.Random(19)
    ranges, ours, theirs = list(parts(data)), Photo.open(data).pixels(1).rgb, as_opencv_reads_it(data)
    assert theirs is not None
    readable = 0
    for _ in range(20_000 if long else 400):
        photo = damaged(data, ranges, chance)
        count("inputs tried")
        other = as_opencv_reads_it(photo)
        if other is not None and np.array_equal(other, theirs):
            readable += 1
            assert np.array_equal(Photo.open(photo).pixels(1).rgb, ours)
            continue
        try:  # it may be refused, or turned if its EXIF was changed; its size must be the same
            pixels = Photo.open(photo).pixels(1).rgb
        except PhotoError:
            continue
        assert sorted(pixels.shape) == sorted(ours.shape)
    assert readable > 100
