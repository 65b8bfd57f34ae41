# SPDX-License-Identifier: AGPL-3.0-only
"""Photos that few programs write: each is read correctly, or refused with a message that says what it is."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from demo.pictures import colour_photo
from mt_photos_ml.machine import memory
from mt_photos_ml.photo import Photo
from mt_photos_ml.photo.decoders import NotEnoughMemory, PhotoError
from photos import bmp, camera_raw, chunk, encoded, exif, jpeg, tiff

PICTURE = colour_photo("orange", (161, 120)).convert("RGB")
PICTURE.paste("white", (3, 3, 9, 9))
PICTURE.paste("black", (12, 3, 18, 9))
GREY = np.asarray(PICTURE.convert("L")).astype(int)[:, :, None].repeat(3, axis=2)


def pixels(data: bytes, **options: bool) -> Any:
    return Photo.open(data).pixels(1, **options).rgb.astype(int)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_a_tiff_of_any_number_type_is_read_as_tifffile_wrote_it(
    dtype: str, photometric: str, compression: str | None, order: str
) -> None:
    data = tiff(PICTURE, dtype, photometric, compression=compression, byteorder=order)
    expected = np.asarray(PICTURE) if photometric == "rgb" else GREY
    np.testing.assert_allclose(pixels(data), expected, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_tiff_is_turned_whichever_decoder_reads_it(dtype: str, orientation: int) -> None:
    expected = Photo.open(encoded(PICTURE, "PNG", exif=exif(orientation)))
    photo = Photo.open(tiff(PICTURE, dtype, extratags=[(274, "H", 1, orientation, True)]))
    assert (photo.width, photo.height) == (expected.width, expected.height)
    np.testing.assert_allclose(photo.pixels(1).rgb.astype(int), expected.pixels(1).rgb, atol=1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(PICTURE, "float16"), "16 floating point bits, RGB"),
        (tiff(PICTURE, "int8", "minisblack"), "8 signed bits, grey"),
        (tiff(PICTURE, "uint16", planarconfig="separate"), "16 bits, RGB, in planes"),
        (tiff(PICTURE, "float32", planarconfig="separate"), "32 floating point bits, RGB, in planes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tiff_that_no_decoder_reads_correctly_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(PhotoError, match=f"^a TIFF with {words} can't be read: save it with 8 bits a channel$"):
        Photo.open(data)


@pytest.mark.parametrize("header", [56, 108, 124])
def test_a_bmp_whose_alpha_is_zero_throughout_is_opaque(header: int) -> None:
    clear = PICTURE.copy()
    clear.putalpha(0)
    data = bmp(clear, 32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), header=header)
    np.testing.assert_array_equal(pixels(data), np.asarray(PICTURE))


@pytest.mark.parametrize(
    ("bits", "masks", "lost"),
    [
        (16, (0xF00, 0xF0, 0xF, 0xF000), 16),
        (16, (0xF00, 0xF0, 0xF, 0), 16),
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000), 8),
        (16, (0xF, 0xF0, 0xF00, 0), 16),
        (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF), 0),
        (32, (0x3FF00000, 0xFFC00, 0x3FF, 0), 0),
    ],
)
def test_a_bmp_of_any_masks_is_read(bits: int, masks: tuple[int, int, int, int], lost: int) -> None:
    """lost: the rounding error of so few bits."""
    np.testing.assert_allclose(pixels(bmp(PICTURE, bits, masks)), np.asarray(PICTURE), atol=lost + 1)


def _png_with_key(values: Any, key: tuple[int, ...]) -> bytes:
    """A PNG of one row, grey or RGB with 16 bits, in which the colour `key` is transparent."""
    kind = 2 if len(key) == 3 else 0
    header = struct.pack(">IIBBBBB", len(values), 1, 16, kind, 0, 0, 0)
    row = b"\0" + np.asarray(values, ">u2").tobytes()
    parts = (b"IHDR", header), (b"tRNS", struct.pack(f">{len(key)}H", *key)), (b"IDAT", zlib.compress(row))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (*parts, (b"IEND", b"")))


def test_only_the_transparent_colour_becomes_white() -> None:
    picture = Image.fromarray(np.array([[(1, 2, 3), (1, 2, 4), (0, 0, 0)]], np.uint8))
    assert pixels(encoded(picture, "PNG", transparency=(1, 2, 3))).tolist() == [[[255] * 3, [1, 2, 4], [0, 0, 0]]]
    rgb = _png_with_key([(257, 514, 771), (258, 514, 771)], (257, 514, 771))
    assert pixels(rgb).tolist() == [[[255] * 3, [1, 2, 3]]]
    assert pixels(_png_with_key([256, 257, 65535], (256,))).tolist() == [[[255] * 3, [1] * 3, [255] * 3]]


@pytest.mark.parametrize(("ink", "paper"), [("white", 0), ("yellow", 0), ("black", 255), ("red", 255)])
def test_for_ocr_light_ink_on_a_transparent_background_is_put_on_black(ink: str, paper: int) -> None:
    clear = Image.new("RGBA", (100, 60))
    clear.paste(ink, (40, 20, 60, 40))
    data = encoded(clear, "PNG")
    assert pixels(data, contrast=True)[0, 0].tolist() == [paper] * 3
    assert pixels(data)[0, 0].tolist() == [255] * 3


def test_the_area_around_the_first_frame_of_a_gif_is_white() -> None:
    small = encoded(Image.new("P", (30, 20)), "GIF")
    at = small.index(b",\0\0\0\0") + 1
    data = small[:6] + struct.pack("<HH", 90, 60) + small[10:at] + struct.pack("<HH", 50, 10) + small[at + 4 :]
    expected = np.full((60, 90), 255)
    expected[10:30, 50:80] = 0
    np.testing.assert_array_equal(pixels(data)[:, :, 0], expected)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_largest_preview_of_a_camera_raw_file_is_read(orientation: int) -> None:
    preview = jpeg(colour_photo("orange", (1200, 800)).convert("RGB"))
    photo = Photo.open(camera_raw(jpeg(PICTURE) + preview, (6000, 4000), orientation))
    turned = orientation == 6
    assert str(photo) == ("RAW 4000x6000" if turned else "RAW 6000x4000")
    assert photo.pixels(1).scale == pytest.approx(0.2)
    assert photo.pixels(1).rgb.shape == ((1200, 800, 3) if turned else (800, 1200, 3))
    assert Photo.open(camera_raw(preview, (6000, 4000))).pixels(0.1).scale == pytest.approx(0.1)


@pytest.mark.parametrize(
    "begin", [b"FUJIFILMCCD-RAW 0201", b"\0\0\0\x18ftypcrx ", b"IIU\0\x08\0\0\0", b"IIRO\x08\0\0\0"]
)
def test_a_camera_raw_file_in_another_container_is_read_by_its_preview(begin: bytes) -> None:
    preview = jpeg(colour_photo("orange", (1200, 800)).convert("RGB"))
    assert str(Photo.open(begin.ljust(200, b"\0") + preview)) == "RAW 1200x800"
    with pytest.raises(PhotoError, match=r"^this camera RAW file has no preview"):
        Photo.open(begin.ljust(200, b"\0") + jpeg(PICTURE))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_in_xmp_is_ignored(kind: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    photo = Photo.open(encoded(PICTURE, kind, **({"pnginfo": text} if kind == "PNG" else {"xmp": xmp})))
    assert (photo.width, photo.height) == PICTURE.size


@pytest.mark.parametrize(
    ("length", "checksum"), [(-1, True), (1, True), (7, True), (0x7FFFFFFF, True), (0, False)], ids=str
)
@pytest.mark.parametrize("name", [b"pHYs", b"tEXt", b"gAMA", b"cHRM", b"iCCP", b"zTXt", b"eXIf", b"tIME", b"abCd"])
def test_a_png_with_a_damaged_ancillary_chunk_is_read(name: bytes, length: int, checksum: bool) -> None:
    """length: by how much the chunk's declared length is wrong."""
    clean, content = encoded(PICTURE, "PNG"), bytes(range(9))
    wrong = bytearray(chunk(name, content))
    wrong[:4] = struct.pack(">I", (len(content) + length) & 0x7FFFFFFF)
    wrong[-1] ^= 0 if checksum else 1
    np.testing.assert_array_equal(pixels(clean[:33] + bytes(wrong) + clean[33:]), np.asarray(PICTURE))


def test_a_photo_with_damaged_metadata_beside_its_exif_is_still_turned() -> None:
    for kind, damaged in (("JPEG", b"\xff\xe2\0\x10MPF\0II*\0garbage"), ("WEBP", b"ICCP\xff\xff\0\0")):
        data = encoded(PICTURE, kind, exif=exif(6))
        if kind == "JPEG":
            data = data[:2] + damaged + data[2:]
        else:
            at = data.index(b"VP8 ")
            data = data[:at] + damaged + data[at:]
        photo = Photo.open(data)
        assert (photo.width, photo.height) == (120, 161), kind


@pytest.mark.parametrize(
    ("kind", "options", "refused", "read"),
    [("PNG", {}, 50, 200), ("WEBP", {"method": 0}, 200, 500), ("JPEG", {"progressive": True}, 300, 400)],
)
def test_a_photo_that_needs_more_memory_than_is_free_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any], refused: int, read: int
) -> None:
    data = encoded(Image.new("RGB", (5000, 4000), "red"), kind, **options)
    monkeypatch.setattr("mt_photos_ml.photo.source.available_mb", lambda: float(refused))
    with pytest.raises(NotEnoughMemory, match=rf"takes \d+ MB of memory and {refused} MB are free"):
        Photo.open(data).pixels(1)
    monkeypatch.setattr("mt_photos_ml.photo.source.available_mb", lambda: float(read))
    assert Photo.open(data).pixels(1).rgb.shape == (4000, 5000, 3)


def test_a_progressive_jpegs_second_decode_is_refused_too_if_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Photo.open(encoded(Image.new("RGB", (5000, 4000), "red"), "JPEG", progressive=True))
    assert photo.pixels(1 / 8).rgb.shape == (500, 625, 3)
    monkeypatch.setattr("mt_photos_ml.photo.source.available_mb", lambda: 300.0)
    with pytest.raises(NotEnoughMemory):
        photo.pixels(1)


def test_a_jpeg_is_decoded_smaller_if_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mt_photos_ml.photo.source.available_mb", lambda: 50.0)
    data = jpeg(Image.new("RGB", (8000, 6000), "red"))
    assert Photo.open(data).resized((224, 224)).shape == (224, 224, 3)


def test_available_memory_is_between_zero_and_ram_plus_swap() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    numbers = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines}
    assert 0 < memory.available_mb() <= numbers["MemTotal"] + numbers["SwapTotal"]
