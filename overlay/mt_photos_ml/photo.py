# SPDX-License-Identifier: AGPL-3.0-only
"""A photo: bytes to header, header to pixels at least so large. Every decoder and every bad file is dealt with here."""

import contextlib
import struct
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Self

import numpy as np
from numpy.typing import NDArray
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

MAX_SIDE = 10_000
"""The longest side, in pixels, that the API takes."""

Box = tuple[float, float, float, float]

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
_END_OF_JPEG = b"\xff\xd9"

# What Pillow warns of, odd EXIF blocks and pictures over 89 megapixels, is handled here or no concern of the log.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

PngImagePlugin.MAX_TEXT_CHUNK = 16_000_000  # an editor's history can be larger than the one megabyte of the default

# How the stored picture becomes the one that people see, by EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = (5, 6, 7, 8)


class PhotoError(ValueError):
    """The photo can't be used; the message says why, in words for its owner."""


class DecoderMissing(RuntimeError):
    """The photo may be fine, but what decodes its kind is not installed."""


@dataclass(frozen=True)
class Pixels:
    """Decoded pixels of a whole photo.

    rgb: (H, W, 3) uint8, as people see the photo. scale: decoded pixels per pixel of the photo, 1 or less.
    origin: where the photo's top left corner lies in rgb, in decoded pixels (x, y), 0 up to 1.
    """

    rgb: NDArray[np.uint8]
    scale: float
    origin: tuple[float, float]

    def transform(self) -> NDArray[np.float64]:
        """(2, 3) matrix from a pixel's indices (x, y) in the photo to its indices in rgb; both count from centres."""
        s, (x, y) = self.scale, self.origin
        return np.array([[s, 0, x + (s - 1) / 2], [0, s, y + (s - 1) / 2]])


class Photo:
    """One photo. Not for several threads at once."""

    def __init__(
        self, data: bytes, header: Image.Image, size: tuple[int, int], orientation: int, animated: bool
    ) -> None:
        """size: of the picture once it is decoded, before `orientation` turns it."""
        self.kind = "JPEG" if header.format == "MPO" else header.format or ""
        self.animated = animated
        self.orientation = orientation
        self.decode_ms = 0.0
        self._data = data
        self._stored_size = size
        self._header: Image.Image | None = header
        self._decoded: Image.Image | None = None
        self._factor = 1.0
        width, height = size
        self.width, self.height = (height, width) if orientation in _SWAPPED else (width, height)

    @classmethod
    def open(cls, data: bytes) -> Self:
        """Reads the header and decodes nothing. Raises PhotoError, or DecoderMissing where the kind needs an extra."""
        if not data:
            raise PhotoError("the file is empty")
        with _explained("the file is not a photo, or its beginning is damaged"):
            header = Image.open(BytesIO(data), formats=_formats(data))
            size, orientation = _decoded_size(header), _orientation(header, data)
            animated = bool(getattr(header, "is_animated", False))
        if not 0 < max(size) <= MAX_SIDE:
            raise PhotoError("height or width out of range")
        return cls(data, header, size, orientation, animated)

    def __str__(self) -> str:
        return f"{self.kind} {self.width}x{self.height}" + (", first frame" if self.animated else "")

    def resized(
        self,
        size: tuple[int, int],
        *,
        box: Box | None = None,
        filter: Image.Resampling = Image.Resampling.BICUBIC,
        oversample: float = 2.0,
    ) -> NDArray[np.uint8]:
        """The part `box` of the photo (left, top, right, bottom in its pixels; the whole where None) at `size`.

        size: (width, height). Returns (height, width, 3) uint8 RGB. The decoder's own scaling is used down to
        `oversample` times the size asked for: 2 keeps 50 dB against a whole decode, 1 is quicker.
        """
        box = box or (0.0, 0.0, float(self.width), float(self.height))
        needed = oversample * max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))
        image = self._decode(needed)
        started = time.perf_counter()
        left, top, right, bottom = (value / self._factor for value in self._stored_box(box))
        if self.orientation in _SWAPPED:
            size = (size[1], size[0])
        # reducing_gap: a box filter to four times the size first: as good, and far quicker on large photos
        part = image.resize(size, filter, box=(left, top, right, bottom), reducing_gap=4.0)
        rgb = np.asarray(self._turned(part))
        self.decode_ms += (time.perf_counter() - started) * 1000
        return rgb

    def pixels(self, scale: float) -> Pixels:
        """The whole photo with at least `scale` decoded pixels per pixel, or all there are where scale is over 1."""
        image = self._decode(scale)
        started = time.perf_counter()
        rgb = np.asarray(self._turned(image))
        self.decode_ms += (time.perf_counter() - started) * 1000
        x, y = rgb.shape[1] - self.width / self._factor, rgb.shape[0] - self.height / self._factor
        origin = (x if self.orientation in (2, 3, 6, 7) else 0.0, y if self.orientation in (3, 4, 7, 8) else 0.0)
        return Pixels(rgb, 1 / self._factor, origin)

    def _turned(self, image: Image.Image) -> Image.Image:
        turn = _TURNS.get(self.orientation)
        return image if turn is None else image.transpose(turn)

    def _stored_box(self, box: Box) -> Box:
        """A box of the photo as seen, in the pixels of the photo as stored."""
        left, right = (min(max(value, 0.0), float(self.width)) for value in (box[0], box[2]))  # roundings apart
        top, bottom = (min(max(value, 0.0), float(self.height)) for value in (box[1], box[3]))
        if self.orientation in (2, 3, 6, 7):
            left, right = self.width - right, self.width - left
        if self.orientation in (3, 4, 7, 8):
            top, bottom = self.height - bottom, self.height - top
        return (top, left, bottom, right) if self.orientation in _SWAPPED else (left, top, right, bottom)

    def _decode(self, scale: float) -> Image.Image:
        """The stored picture as RGB, with at least `scale` decoded pixels per pixel; the largest so far is kept."""
        if self._decoded is not None and 1 / self._factor >= min(scale, 1):
            return self._decoded
        started = time.perf_counter()
        with _explained("the photo is damaged"):
            try:
                self._decoded, self._factor = self._read(self._data, scale)
            except OSError:
                if self.kind != "JPEG":
                    raise
                # Cut short: with an end put behind what is there, libjpeg gives what it has and grey for the rest.
                self._header = None
                self._decoded, self._factor = self._read(self._data + _END_OF_JPEG, scale)
        self.decode_ms += (time.perf_counter() - started) * 1000
        return self._decoded

    def _read(self, data: bytes, scale: float) -> tuple[Image.Image, float]:
        image, self._header = self._header or Image.open(BytesIO(data), formats=[self.kind]), None
        factor = next((f for f in (8, 4, 2) if 1 / f >= scale), 1)
        width, height = self._stored_size
        drafted = image.draft(None, (max(width // factor, 1), max(height // factor, 1)))
        image.load()
        return _rgb(image), (width / drafted[1][2] if drafted else 1.0)


@contextlib.contextmanager
def _explained(reason: str) -> Iterator[None]:
    """Whatever a decoder raises about a file becomes a PhotoError with this reason; what isn't its fault stays."""
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


def _decoded_size(header: Image.Image) -> tuple[int, int]:
    """Width and height once it is decoded. A TIFF is turned while it is: only Pillow 11 and later say so beforehand."""
    if not isinstance(header, TiffImagePlugin.TiffImageFile):
        return header.size
    tags = header.tag_v2
    width, height = int(tags[ExifTags.Base.ImageWidth]), int(tags[ExifTags.Base.ImageLength])
    return (height, width) if tags.get(ExifTags.Base.Orientation) in _SWAPPED else (width, height)


def _orientation(header: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none, it makes no sense, or the decoder applies it itself."""
    if header.format in ("TIFF", "HEIF"):
        return 1
    try:
        exif = header.getexif() if header.format != "PNG" else _png_exif(data)
        value = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block is no reason to refuse the photo
        return 1
    return value if value in _TURNS else 1


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


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: 16-bit by its high byte, transparent over white, the rest as Pillow converts it."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float32))
        high = float(values.max(initial=0))
        if image.mode == "F" and high <= 2:
            white = 1.0  # light as it is kept for editing, with a highlight or two beyond white
        elif high <= 255 and not image.mode.startswith("I;16"):
            white = 255.0
        else:
            white = max(high, 65535.0)
        image = Image.fromarray(np.clip(values * (255 / white), 0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            return image.convert("RGB")
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image)
        image = paper
    return image.convert("RGB")
