# SPDX-License-Identifier: AGPL-3.0-only
"""A photo's file: which decoder reads it correctly, how much memory that needs, and its picture before it is turned."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ..machine.memory import available_mb, trim_memory
from . import jxl, tiff
from .colours import from_numbers
from .decoders import (
    NotEnoughMemory,
    PhotoError,
    decoded_size,
    explain_errors,
    formats,
    is_animated,
    open_file,
    open_or_mend,
    orientation,
)
from .mending import mend

_END_OF_JPEG = b"\xff\xd9"

_BYTES_PER_PIXEL = {"WEBP": 16, "AVIF": 10, "HEIF": 8, "JXL": 16}
"""Peak memory of decoding, measured at 24 megapixels; 5 for other kinds, 13 with transparency."""

_BYTES_PER_PIXEL_READ = 10
"""Memory while the decoded pixels are copied for a network."""

_BYTES_PER_PIXEL_HELD = 7
"""Memory while the decoded photo is in use."""

_BYTES_TO_CHECK = 96 << 20
"""Free memory is checked only for a photo that needs at least this much."""


@dataclass
class Source:
    """A photo's file, with its header read. kind: such as JPEG. size: width and height of the photo before it is
    turned. orientation: EXIF's, 1 to 8, to apply after decoding."""

    data: bytes
    kind: str
    size: tuple[int, int]
    orientation: int = 1
    is_animated: bool = False
    is_filled_up: bool = False  # because the file was cut short
    is_clear: bool = False  # it may have transparency
    is_progressive: bool = False  # a progressive JPEG: the decoder holds all of it, at any scale
    header: ImageFile.ImageFile | None = None  # Pillow's image; used once, because it keeps its pixels
    read_numbers: Callable[[bytes], NDArray[Any]] | None = None  # if Pillow would misread it

    @classmethod
    def open(cls, data: bytes) -> Self:
        """Reads the header. Raises PhotoError, or DecoderMissing if the kind needs another library."""
        with explain_errors("the file is not a photo, or its beginning is damaged"):
            if not (pictures := tiff.directories(data)) and data.startswith((b"II", b"MM")):
                data = mend(data)
                pictures = tiff.directories(data)
            if tiff.is_raw(data, pictures):
                return cls._of_raw(data, pictures)
            if pictures and not tiff.is_read_by_pillow(pictures[0]):
                return cls._of_odd_tiff(data, pictures[0])
            if formats(data) == ["JXL"]:
                return cls(data, "JXL", *jxl.size_and_turn(data))
            image, mended = open_or_mend(data)
            kind = "JPEG" if image.format == "MPO" else image.format or ""
            is_filled_up = kind == "WEBP" and len(mended) > len(data)
            turn = orientation(image, data)
            source = cls(mended, kind, decoded_size(image), turn, is_animated(image), is_filled_up, header=image)
            source.is_clear = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
            source.is_progressive = "progressive" in image.info
            if kind == "PNG" and image.mode == "RGB" and data[24] == 16 and "transparency" in image.info:
                source.read_numbers = _read_by_opencv  # Pillow compares the 16-bit transparent colour with 8 bits
            return source

    @classmethod
    def _of_raw(cls, data: bytes, pictures: list[tiff.Tags]) -> Self:
        """Uses the largest JPEG that the camera embedded."""
        preview = tiff.preview(data, pictures)
        if not preview:
            raise PhotoError("this camera RAW file has no preview that is large enough: send the photo as a JPEG")
        source = cls.open(preview.jpeg)
        return replace(source, kind="RAW", size=preview.size, orientation=preview.orientation or source.orientation)

    @classmethod
    def _of_odd_tiff(cls, data: bytes, tags: tiff.Tags) -> Self:
        if not tiff.is_read_by_opencv(tags):
            raise PhotoError(f"a TIFF with {tiff.describe(tags)} can't be read: save it with 8 bits a channel")
        is_negative = tiff.is_negative(tags)
        return cls(data, "TIFF", tiff.size(tags), read_numbers=partial(_read_by_opencv, is_negative=is_negative))

    def require_memory(self, scale: float, *, whole: bool, beside: int = 0) -> None:
        """Raises NotEnoughMemory if decoding at this scale would exhaust memory. whole: the caller copies all pixels.
        beside: bytes that the caller allocates next, while it holds the pixels."""
        pixels = self.size[0] * self.size[1]
        each = _BYTES_PER_PIXEL.get(self.kind, 5)
        if self.read_numbers:
            each = 24
        elif self.is_clear:
            each = 13
        held = 0
        if self.kind in ("JPEG", "RAW"):
            held = 6 * pixels if self.is_progressive else 0
            pixels //= _reduction(scale) ** 2
        peak = held + pixels * max(each, _BYTES_PER_PIXEL_READ if whole else 0)
        if peak < _BYTES_TO_CHECK:
            return
        needed = max(peak, pixels * _BYTES_PER_PIXEL_HELD + beside)
        if needed / 1e6 < available_mb():
            return
        trim_memory()
        if needed / 1e6 > (there := available_mb()):
            raise NotEnoughMemory(
                f"this photo takes {needed / 1e6:.0f} MB of memory and {max(there, 0):.0f} MB are free: "
                "give the service or its container more"
            )

    def decode(self, scale: float) -> tuple[Image.Image, float]:
        """Returns the picture before it is turned, and the photo pixels per decoded pixel. The picture has at least
        `scale` decoded pixels per pixel of the photo, if the file does. Missing parts of a file that was cut short have
        one colour. Raises PhotoError."""
        with explain_errors("the photo is damaged"):
            if self.read_numbers:
                return from_numbers(self.read_numbers(self.data)), 1.0
            image, self.header = self.header or open_file(self.data), None
            try:
                found = self._load(image, scale)
            except MemoryError:
                raise
            except Exception as error:
                self.is_filled_up = True
                if image.format in ("JPEG", "MPO"):  # with an end marker libjpeg decodes what is there
                    image = open_file(self.data + _END_OF_JPEG)
                elif image.format in ("PNG", "GIF") and "truncated" in str(error):
                    image.tile = []  # it then returns what it has decoded
                else:
                    image = open_file(mend(self.data))
                found = self._load(image, scale)
            if self.is_filled_up and _is_blank(found[0]):
                raise ValueError("nothing of the picture is there")
            return found

    def _load(self, image: ImageFile.ImageFile, scale: float) -> tuple[Image.Image, float]:
        factor = _reduction(scale * self.size[0] / image.width if self.kind == "RAW" else scale)
        drafted = image.draft(None, (max(image.width // factor, 1), max(image.height // factor, 1)))
        frame = image.tile[0][1] if image.format == "GIF" and image.tile else None
        image.load()
        if frame and frame != (0, 0, *image.size):  # the area around the frame is transparent
            canvas = Image.new("RGBA", image.size)
            canvas.paste(image.crop(frame), frame)
            return canvas, 1.0
        return image, self.size[0] / (drafted[1][2] if drafted else image.width)


def _is_blank(image: Image.Image) -> bool:
    """Whether it has only one colour, give or take what a decoder makes of zeros."""
    return all(high - low <= 4 for low, high in np.reshape(image.getextrema(), (-1, 2)))


def _reduction(scale: float) -> int:
    """The number by which libjpeg may divide the sides."""
    return next((f for f in (8, 4, 2) if 1 / f >= scale), 1)


def _read_by_opencv(data: bytes, is_negative: bool = False) -> NDArray[Any]:
    """Returns (H, W) grey or (H, W, 3 or 4) RGB of any number type. is_negative: white is stored as zero."""
    try:
        values: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise MemoryError if error.code == cv2.Error.StsNoMem else ValueError from error
    if values is None:
        raise PhotoError("the photo is damaged, or of a kind that can't be read: save it with 8 bits a channel")
    if is_negative:
        values = np.subtract(np.iinfo(values.dtype).max if values.dtype.kind in "iu" else max(values.max(), 1), values)
    return np.asarray(values if values.ndim == 2 else values[:, :, [2, 1, 0, 3][: values.shape[2]]])
