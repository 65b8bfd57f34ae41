# SPDX-License-Identifier: AGPL-3.0-only
"""Makes photo files from pictures: of every kind that people have, turned by EXIF, or with a valid header only."""

import importlib.util
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image

from demo.pictures import COLOURS

Picture = Image.Image
Encoder = Callable[[Picture], bytes]

HEIC_CAN_BE_MADE = importlib.util.find_spec("pillow_heif") is not None

_NAMES = ["红色", "橙色", "黄色", "绿色", "青色", "蓝色", "紫色", "粉色", "棕色", "黑色", "白色", "灰色"]
CHINESE = dict(zip(COLOURS, _NAMES, strict=True))
"""The Chinese name of each colour in demo.pictures.COLOURS."""

# How a camera turns the picture before it stores it, by EXIF orientation: the opposite of what EXIF says.
_TURN = Image.Transpose
_TURNS = _TURN.FLIP_LEFT_RIGHT, _TURN.ROTATE_180, _TURN.FLIP_TOP_BOTTOM, _TURN.TRANSPOSE
_STORED = dict(enumerate([*_TURNS, _TURN.ROTATE_90, _TURN.TRANSVERSE, _TURN.ROTATE_270], 2))


def encoded(picture: Picture, kind: str, **options: object) -> bytes:
    """The picture as a file. kind, options: Pillow's name of the format, and its options."""
    if kind == "HEIF":
        from pillow_heif import register_heif_opener

        register_heif_opener()
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def jpeg(picture: Picture, quality: int = 92) -> bytes:
    """The picture as a JPEG like a camera's."""
    return encoded(picture, "JPEG", quality=quality)


def turned(picture: Picture, orientation: int, kind: str = "JPEG", **options: object) -> bytes:
    """A file whose pixels are stored turned, and whose EXIF turns them back into `picture`."""
    return encoded(stored(picture, orientation), kind, exif=exif(orientation), **options)


def stored(picture: Picture, orientation: int) -> Picture:
    """The pixels that a file with this orientation must have so that people see `picture`."""
    return picture.transpose(_STORED[orientation]) if orientation in _STORED else picture


def exif(orientation: int) -> bytes:
    """EXIF with this orientation, as bytes: from an Image.Exif, pillow-heif would not write HEIC's own property."""
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    return block.tobytes()


def _as(kind: str, mode: str = "RGB", **options: object) -> Encoder:
    return lambda picture: encoded(picture.convert(mode), kind, **options)


def _moving(kind: str, **options: object) -> Encoder:
    """Encodes a picture as an animation whose second frame is blue."""

    def animated(picture: Picture) -> bytes:
        others = [Image.new("RGB", picture.size, "blue")]
        return encoded(picture, kind, save_all=True, append_images=others, duration=100, **options)

    return animated


def _with_clear_corner(picture: Picture, mode: str, kind: str = "PNG") -> bytes:
    clear = picture.convert(mode)
    mask = Image.new("L", picture.size, 255)
    mask.paste(0, (0, 0, 12, 12))
    clear.putalpha(mask)
    return encoded(clear, kind)


def _png_with_16_bits(picture: Picture, mode: str) -> bytes:
    values = np.asarray(picture.convert(mode)).astype(np.uint16) * 257
    return cv2.imencode(".png", values if mode == "L" else values[:, :, ::-1])[1].tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def that_claims(kind: str, width: int, height: int) -> bytes:
    """A small file whose valid header declares this size in pixels."""
    small = Image.new("P" if kind == "GIF" else "RGB", (16, 16))
    if kind == "PNG":
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + content
    if kind == "JPEG":
        photo = jpeg(small)
        at = photo.index(b"\xff\xc0") + 5
        return photo[:at] + struct.pack(">HH", height, width) + photo[at + 4 :]
    if kind in ("GIF", "BMP"):
        photo, at, layout = encoded(small, kind), *((6, "<HH") if kind == "GIF" else (18, "<ii"))
        return photo[:at] + struct.pack(layout, width, height) + photo[at + struct.calcsize(layout) :]
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 64)]
    entries = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def bmp(picture: Picture, bits: int, masks: tuple[int, int, int, int], *, header: int = 56) -> bytes:
    """A BMP with 16 or 32 bits a pixel. masks: the bits of red, green, blue and alpha."""
    channels = [*np.asarray(picture.convert("RGBA")).astype(np.uint32).transpose(2, 0, 1)]
    pixels = sum(
        (channel * (mask // (mask & -mask)) // 255) * (mask & -mask)
        for channel, mask in zip(channels, masks, strict=True)
        if mask
    )
    rows = np.asarray(pixels)[::-1].astype(f"<u{bits // 8}")
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % (32 // bits))))
    info = struct.pack("<IiiHHI20x4I", header, *picture.size, 1, bits, 3, *masks).ljust(header, b"\0")
    return struct.pack("<2sIII", b"BM", 14 + len(info) + rows.nbytes, 0, 14 + len(info)) + info + rows.tobytes()


def tiff(picture: Picture, dtype: str, photometric: str = "rgb", **options: Any) -> bytes:
    """A TIFF of this dtype, scaled to its largest value, or to 1 if it is a float; grey if it is `minis…`."""
    import tifffile

    values = np.asarray(picture.convert("RGB" if photometric == "rgb" else "L")) / 255.0
    if photometric == "miniswhite":
        values = 1 - values
    if np.dtype(dtype).kind != "f":
        values = np.round(values * np.iinfo(dtype).max)
    if options.get("planarconfig") == "separate":
        values = np.moveaxis(values, 2, 0)
    file = BytesIO()
    tifffile.imwrite(file, values.astype(dtype), photometric=photometric, **options)
    return file.getvalue()


def camera_raw(preview: bytes, size: tuple[int, int], orientation: int = 1) -> bytes:
    """A RAW file: a small picture, the sensor's data of this size, and the JPEG `preview`."""
    import tifffile

    file = BytesIO()
    small = np.full((120, 160, 3), 200, np.uint8)
    with tifffile.TiffWriter(file) as writer:
        turn = (274, "H", 1, orientation, True)
        writer.write(small, photometric="rgb", subfiletype=1, subifds=1, extratags=[turn], metadata=None)
        writer.write(np.zeros(size[::-1], np.uint16), photometric=32803, metadata=None, extratags=_CFA)
    return file.getvalue() + preview


_CFA = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, b"\0\1\1\2", True)]


IN_COLOUR: Mapping[str, Encoder] = {
    "jpeg-baseline": jpeg,
    "jpeg-progressive": _as("JPEG", quality=92, progressive=True),
    "jpeg-cmyk": _as("JPEG", "CMYK", quality=92),
    "png": _as("PNG"),
    "png-16-bit": partial(_png_with_16_bits, mode="RGB"),
    "png-palette": lambda picture: encoded(picture.quantize(256), "PNG"),
    "png-alpha": partial(_with_clear_corner, mode="RGBA"),
    "png-animated": _moving("PNG"),
    "webp-lossy": _as("WEBP", quality=90),
    "webp-lossless": _as("WEBP", lossless=True, method=0),
    "webp-alpha": partial(_with_clear_corner, mode="RGBA", kind="WEBP"),
    "webp-animated": _moving("WEBP", quality=90),
    "gif": _as("GIF", interlace=0),
    "gif-animated": _moving("GIF"),
    "bmp": _as("BMP"),
    "bmp-palette": lambda picture: encoded(picture.quantize(256), "BMP"),
    "bmp-16-bit": lambda picture: bmp(picture, 16, (0xF00, 0xF0, 0xF, 0xF000)),
    "tiff": _as("TIFF"),
    "tiff-float": lambda picture: tiff(picture, "float32"),
    "tiff-big-endian": lambda picture: tiff(picture, "uint16", byteorder=">"),
    "tiff-lzw": _as("TIFF", compression="tiff_lzw"),
    "tiff-jpeg": _as("TIFF", compression="jpeg", quality=92),
    "avif": _as("AVIF", quality=85, speed=10),
    "heic": _as("HEIF", quality=85),
}
IN_GREY: Mapping[str, Encoder] = {
    "jpeg-grey": _as("JPEG", "L", quality=92),
    "png-grey": _as("PNG", "L"),
    "png-grey-16-bit": partial(_png_with_16_bits, mode="L"),
    "png-grey-alpha": partial(_with_clear_corner, mode="LA"),
    "tiff-grey": _as("TIFF", "L"),
    "tiff-white-is-zero": lambda picture: tiff(picture, "uint16", "miniswhite"),
}
