# SPDX-License-Identifier: AGPL-3.0-only
"""Kind, size, orientation and RGB pixels of a file, read with Pillow; its errors in words for the owner."""

import contextlib
import struct
import warnings
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import (  # noqa: F401  # the plugins by name, or Pillow imports all forty to identify a text file
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

_FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]  # JPEG includes MPO, a JPEG with a second picture
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}

# Pillow warns of odd EXIF blocks and of pictures over 89 megapixels, which are handled here.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

PngImagePlugin.MAX_TEXT_CHUNK = 16_000_000  # bytes; an editor's history can exceed the default of one megabyte


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a stored picture becomes the one that people see, by EXIF orientation; 1 leaves it as it is."""


class PhotoError(ValueError):
    """The photo can't be used; the message says why, for its owner."""


class DecoderMissing(RuntimeError):
    """The photo may be fine, but the library that decodes its kind is not installed."""


def open_image(data: bytes) -> tuple[Image.Image, tuple[int, int], int]:
    """The picture, not decoded yet; its width and height once decoded; the EXIF orientation to apply then, 1 to 8.

    Raises PhotoError, or DecoderMissing if the kind needs another library."""
    with explain_errors("the file is not a photo, or its beginning is damaged"):
        image = Image.open(BytesIO(data), formats=_formats(data))
        return image, _decoded_size(image), _orientation(image, data)


@contextlib.contextmanager
def explain_errors(reason: str) -> Iterator[None]:
    """Turns what a decoder raises about a file into a PhotoError with this reason; other errors pass."""
    try:
        yield
    except (MemoryError, PhotoError, DecoderMissing):
        raise
    except Image.DecompressionBombError:
        raise PhotoError("height or width out of range") from None
    except Exception as error:  # decoders raise nearly anything on hostile files: struct.error, KeyError, SyntaxError
        raise PhotoError(reason) from error


def _formats(data: bytes) -> list[str]:
    """Pillow's names of what the file may be. Raises DecoderMissing if its kind needs another library."""
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


def _decoded_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once decoded. Decoding turns a TIFF, which only Pillow 11 and later take into account here."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.size
    tags = image.tag_v2
    width, height = int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])
    return (height, width) if tags.get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else (width, height)


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 if there is none, it makes no sense, or the decoder applies it itself."""
    if image.format in ("TIFF", "HEIF"):
        return 1
    with contextlib.suppress(Exception):  # a damaged EXIF block is no reason to refuse the photo
        exif = image.getexif() if image.format != "PNG" else _png_exif(data)
        if (value := exif.get(ExifTags.Base.Orientation)) in TURNS:
            return int(value)
    return 1


def is_animated(image: Image.Image) -> bool:
    """Whether there are frames after the first; a damaged second one does not count."""
    with contextlib.suppress(Exception):  # the file may end within the second frame
        return bool(getattr(image, "is_animated", False))
    return False


def _png_exif(data: bytes) -> Image.Exif:
    """The EXIF of a PNG, wherever its chunk is; Pillow would decode the whole picture to look after the pixels."""
    exif, position = Image.Exif(), 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            exif.load(b"Exif\0\0" + data[position + 8 : position + 8 + length])
            break
        position += 12 + length
    return exif


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: the high byte of 16 bits, transparent over white, the rest as Pillow converts it."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _to_8_bit(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """8-bit grey, scaled by the picture's own white; 256 rows at a time, because 32 bits take four times the memory."""
    values = np.asarray(image)
    high = float(np.nanmax(values, initial=0, where=np.isfinite(values)))
    if image.mode == "F" and high <= 2:
        white = 1.0  # linear light, whose highlights may exceed white
    elif high <= 255 and not image.mode.startswith("I;16"):
        white = 255.0
    else:
        white = max(high, 65535.0)
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):
        rows = np.nan_to_num(values[top : top + 256].astype(np.float32))
        grey[top : top + 256] = np.clip(rows, 0, white) * (255 / white)
    return Image.fromarray(grey)
