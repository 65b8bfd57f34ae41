# SPDX-License-Identifier: AGPL-3.0-only
"""What Pillow is asked: kind, size and orientation of a file, its pixels as RGB, and its faults in words."""

import contextlib
import struct
import warnings
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import (  # the plugins by name: Pillow would otherwise import all forty to know a text file
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

_PLUGINS = (
    JpegImagePlugin.JpegImageFile,  # and MPO, which it turns into once it has seen a second picture
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
)
_FORMATS = [plugin.format for plugin in _PLUGINS]
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}

# What Pillow warns of, odd EXIF blocks and pictures over 89 megapixels, is handled here or no concern of the log.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

PngImagePlugin.MAX_TEXT_CHUNK = 16_000_000  # an editor's history can be larger than the one megabyte of the default

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How the stored picture becomes the one that people see, by EXIF orientation."""

SWAPPED = (5, 6, 7, 8)
"""The orientations that turn height into width."""


class PhotoError(ValueError):
    """The photo can't be used; the message says why, in words for its owner."""


class DecoderMissing(RuntimeError):
    """The photo may be fine, but what decodes its kind is not installed."""


def open_image(data: bytes) -> tuple[Image.Image, tuple[int, int], int]:
    """The picture, of which no pixel is decoded yet; width and height once it is; the EXIF orientation to be applied
    then, 1 to 8. Raises PhotoError, or DecoderMissing where the kind needs an extra."""
    with explain_errors("the file is not a photo, or its beginning is damaged"):
        image = Image.open(BytesIO(data), formats=_formats(data))
        return image, _decoded_size(image), _orientation(image, data)


@contextlib.contextmanager
def explain_errors(reason: str) -> Iterator[None]:
    """Turns whatever a decoder raises about a file into a PhotoError with this reason; what isn't its fault stays."""
    try:
        yield
    except (MemoryError, PhotoError, DecoderMissing):
        raise
    except Image.DecompressionBombError:
        raise PhotoError("height or width out of range") from None
    except (
        Exception
    ) as error:  # decoders raise nearly anything on hostile files: struct.error, KeyError, SyntaxError, …
        raise PhotoError(reason) from error


def _formats(data: bytes) -> list[str]:
    """What the file may be, by Pillow's names. Raises DecoderMissing where it is of a kind that needs an extra."""
    if data[4:8] != b"ftyp":
        return _FORMATS
    brand = data[8:12]
    if brand in _AVIF_BRANDS or (brand in _HEIF_BRANDS and b"avif" in data[8:64]):
        return [_avif_format()]
    return [_heif_format()] if brand in _HEIF_BRANDS else _FORMATS


def _avif_format() -> str:
    try:
        from PIL import AvifImagePlugin
    except ImportError:
        raise DecoderMissing("AVIF photos need Pillow 11.3 or newer, which is not installed here") from None
    if not AvifImagePlugin.SUPPORTED:
        raise DecoderMissing("AVIF photos need a build of Pillow that can read them, which is not installed here")
    return "AVIF"


def _heif_format() -> str:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise DecoderMissing("HEIC photos need the package pillow-heif, which is not installed here") from None
    register_heif_opener()
    return "HEIF"


def _decoded_size(image: Image.Image) -> tuple[int, int]:
    """Width and height once it is decoded. A TIFF is turned while it is: only Pillow 11 and later say so beforehand."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.size
    tags = image.tag_v2
    width, height = int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])
    return (height, width) if tags.get(ExifTags.Base.Orientation) in SWAPPED else (width, height)


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none, it makes no sense, or the decoder applies it itself."""
    if image.format in ("TIFF", "HEIF"):
        return 1
    try:
        exif = image.getexif() if image.format != "PNG" else _png_exif(data)
        value = exif.get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block is no reason to refuse the photo
        return 1
    return value if value in TURNS else 1


def is_animated(image: Image.Image) -> bool:
    """Whether it has more than the one picture that is used; a second one that is damaged does not count."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # Pillow looks for it where a file may end
        return False


def _png_exif(data: bytes) -> Image.Exif:
    """The EXIF of a PNG wherever its chunk stands; Pillow decodes the whole picture to look behind the pixels."""
    exif, position = Image.Exif(), 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            exif.load(b"Exif\0\0" + data[position + 8 : position + 8 + length])
            break
        position += 12 + length
    return exif


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: 16-bit by its high byte, transparent over white, the rest as Pillow converts it."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _to_8_bit(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("RGB")
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image)
        image = paper
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 8 bits, by its own white; a few rows at a time, since numbers of 32 bits take four times as much."""
    values = np.asarray(image)
    high = float(np.nanmax(values, initial=0, where=np.isfinite(values)))
    if image.mode == "F" and high <= 2:
        white = 1.0  # light as it is kept for editing, with a highlight or two beyond white
    elif high <= 255 and not image.mode.startswith("I;16"):
        white = 255.0
    else:
        white = max(high, 65535.0)
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):
        rows = np.nan_to_num(values[top : top + 256].astype(np.float32))
        grey[top : top + 256] = np.clip(rows, 0, white) * (255 / white)
    return Image.fromarray(grey)
