# SPDX-License-Identifier: AGPL-3.0-only
"""Reads with Pillow a file's kind, size, orientation and frames, and explains Pillow's errors to the user."""

import contextlib
import struct
import warnings
from collections.abc import Iterator
from io import BytesIO

from PIL import (  # noqa: F401  # otherwise Pillow imports all forty plugins to identify a text file
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from . import tiff
from .jxl import is_jxl
from .mending import mend

_FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]  # JPEG includes MPO, a JPEG with a second picture
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}

# Pillow warns of odd EXIF blocks and of pictures over 89 megapixels; this package handles both.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

PngImagePlugin.MAX_TEXT_CHUNK = 16_000_000  # bytes; an editing history can exceed the default of one megabyte


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a picture upright, by its EXIF orientation; 1 is upright already."""


class PhotoError(ValueError):
    """The photo can't be used; the message tells the user why."""


class DecoderMissing(RuntimeError):
    """The photo may be fine, but the library that decodes its kind is not installed."""


class NotEnoughMemory(MemoryError):
    """Decoding needs more memory than is free; the message gives both figures."""


@contextlib.contextmanager
def explain_errors(reason: str) -> Iterator[None]:
    """Turns errors of a decoder into a PhotoError with this reason; passes on our own and MemoryError."""
    try:
        yield
    except (MemoryError, PhotoError, DecoderMissing):
        raise
    except Image.DecompressionBombError:
        raise PhotoError("height or width out of range") from None
    except Exception as error:  # decoders raise nearly anything on hostile files: struct.error, KeyError, SyntaxError
        raise PhotoError(reason) from error


def open_or_mend(data: bytes) -> tuple[ImageFile.ImageFile, bytes]:
    """Opens a file, mended if Pillow refuses it. Returns the picture and the bytes that it was opened from."""
    try:
        return open_file(data), data
    except (DecoderMissing, Image.DecompressionBombError):
        raise
    except Exception:
        if (mended := mend(data)) is data:
            raise
        return open_file(mended), mended


def open_file(data: bytes) -> ImageFile.ImageFile:
    return Image.open(BytesIO(data), formats=formats(data))


def formats(data: bytes) -> list[str]:
    """Pillow's names of the formats that the file may have. Raises DecoderMissing if it needs another library."""
    if is_jxl(data):
        try:
            import pillow_jxl  # noqa: F401  # it registers itself with Pillow
        except ImportError:
            raise DecoderMissing("JPEG XL photos need the package pillow-jxl-plugin, not installed here") from None
        return ["JXL"]
    if data[4:8] != b"ftyp":
        return _FORMATS
    brand = data[8:12]
    if brand in _AVIF_BRANDS or (brand in _HEIF_BRANDS and b"avif" in data[8:64]):
        try:
            from PIL import AvifImagePlugin
        except ImportError:
            raise DecoderMissing("AVIF photos need Pillow 11.3 or newer, which is not installed here") from None
        if not AvifImagePlugin.SUPPORTED:
            raise DecoderMissing("AVIF photos need a build of Pillow that can read them, which is not installed here")
        return ["AVIF"]
    if brand in _HEIF_BRANDS:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise DecoderMissing("HEIC photos need the package pillow-heif, which is not installed here") from None
        register_heif_opener()
        return ["HEIF"]
    return _FORMATS


def decoded_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after decoding, which turns a TIFF upright; Pillow before 11 reports its size before that."""
    return tiff.size(image.tag_v2) if isinstance(image, TiffImagePlugin.TiffImageFile) else image.size


def orientation(image: Image.Image, data: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 if it is missing or invalid, or if the decoder applies it itself."""
    if image.format in ("TIFF", "HEIF"):
        return 1
    with contextlib.suppress(Exception):  # a photo with a damaged EXIF block is still usable
        exif = Image.Exif()  # getexif would also use XMP's orientation, which no other program applies
        exif.load(_png_exif(data) if image.format == "PNG" else image.info["exif"])
        if (value := exif.get(ExifTags.Base.Orientation)) in TURNS:
            return int(value)
    return 1


def _png_exif(data: bytes) -> bytes:
    """The EXIF chunk of a PNG, also after the pixels; Pillow would decode the whole picture to find it there."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            return b"Exif\0\0" + data[position + 8 : position + 8 + length]
        position += 12 + length
    return b""


def is_animated(image: Image.Image) -> bool:
    """Whether there are frames after the first; a damaged second frame does not count."""
    with contextlib.suppress(Exception):  # the file may end within the second frame
        return bool(getattr(image, "is_animated", False))
    return False
