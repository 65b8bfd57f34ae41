# SPDX-License-Identifier: AGPL-3.0-only
"""A photo: bytes to header, then header to pixels of at least the size asked for, turned as people see them."""

import time
from dataclasses import dataclass
from io import BytesIO
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .decoders import TURNS, PhotoError, explain_errors, is_animated, open_image, to_rgb

MAX_SIDE_PX = 10_000
"""The longest side that the API takes."""

Box = tuple[float, float, float, float]

_END_OF_JPEG = b"\xff\xd9"


@dataclass(frozen=True)
class Pixels:
    """Decoded pixels of a whole photo. rgb: (H, W, 3) uint8, as people see it. scale: decoded pixels per pixel of the
    photo, 1 or less. origin: the photo's top left corner in rgb, in decoded pixels (x, y), from 0 to 1."""

    rgb: NDArray[np.uint8]
    scale: float
    origin: tuple[float, float]

    def transform(self) -> NDArray[np.float64]:
        """(2, 3) matrix from a pixel's indices (x, y) in the photo to those in rgb; integers are pixels' centres."""
        s, (x, y) = self.scale, self.origin
        return np.array([[s, 0, x + (s - 1) / 2], [0, s, y + (s - 1) / 2]])


class Photo:
    """One photo. Not thread-safe."""

    def __init__(self, data: bytes, header: Image.Image, size: tuple[int, int], orientation: int) -> None:
        """size: width and height of the decoded picture, before it is turned. orientation: of EXIF, 1 to 8."""
        self.kind = "JPEG" if header.format == "MPO" else header.format or ""
        self.animated = is_animated(header)
        self.orientation = orientation
        self.decode_ms = 0.0
        self._data, self._stored_size = data, size
        self._header: Image.Image | None = header
        self._decoded: Image.Image | None = None
        self._factor = 1.0  # pixels of the photo per decoded pixel
        self._turn = TURNS[orientation]
        self.width, self.height = size[::-1] if self._turn.swaps_sides else size

    @classmethod
    def open(cls, data: bytes) -> Self:
        """Reads only the header. Raises PhotoError, or DecoderMissing if the kind needs another library."""
        if not data:
            raise PhotoError("the file is empty")
        header, size, orientation = open_image(data)
        if not 0 < max(size) <= MAX_SIDE_PX:
            raise PhotoError("height or width out of range")
        return cls(data, header, size, orientation)

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
        """The part `box` of the photo (left, top, right, bottom in its pixels; None: the whole) at `size`.

        size: (width, height). Returns (height, width, 3) uint8 RGB. The decoder scales down to `oversample` times the
        size: 2 keeps 50 dB against a full decode, 1 is quicker.
        """
        box = box or (0.0, 0.0, float(self.width), float(self.height))
        image = self._decode(oversample * max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1])))
        started = time.perf_counter()
        stored_size = size[::-1] if self._turn.swaps_sides else size
        # reducing_gap: a box filter to four times the size first: as good, and far quicker on large photos
        return self._rgb(image.resize(stored_size, filter, self._stored_box(box), reducing_gap=4.0), started)

    def pixels(self, scale: float) -> Pixels:
        """The whole photo with at least `scale` decoded pixels per pixel, or all there are if scale is over 1."""
        rgb = self._rgb(self._decode(scale), time.perf_counter())
        x, y = rgb.shape[1] - self.width / self._factor, rgb.shape[0] - self.height / self._factor
        return Pixels(rgb, 1 / self._factor, (x if self._turn.flips_x else 0.0, y if self._turn.flips_y else 0.0))

    def _rgb(self, image: Image.Image, started: float) -> NDArray[np.uint8]:
        """Turned as people see it. started: when the work on it began, by time.perf_counter()."""
        rgb = np.asarray(image if self._turn.operation is None else image.transpose(self._turn.operation))
        self.decode_ms += (time.perf_counter() - started) * 1000
        return rgb

    def _stored_box(self, box: Box) -> Box:
        """A box of the photo as seen, as a box of the decoded picture as stored."""
        edges = np.clip(box, 0, (self.width, self.height) * 2)  # rounding may exceed the edge
        left, top, right, bottom = edges.tolist()
        if self._turn.flips_x:
            left, right = self.width - right, self.width - left
        if self._turn.flips_y:
            top, bottom = self.height - bottom, self.height - top
        stored = (top, left, bottom, right) if self._turn.swaps_sides else (left, top, right, bottom)
        return stored[0] / self._factor, stored[1] / self._factor, stored[2] / self._factor, stored[3] / self._factor

    def _decode(self, scale: float) -> Image.Image:
        """The stored picture in RGB, with at least `scale` decoded pixels per pixel. Keeps the largest so far."""
        if self._decoded is not None and 1 / self._factor >= min(scale, 1):
            return self._decoded
        started = time.perf_counter()
        with explain_errors("the photo is damaged"):
            try:
                self._decoded, self._factor = self._read(self._data, scale)
            except OSError:
                if self.kind != "JPEG":
                    raise
                # A truncated JPEG: with an end marker, libjpeg decodes what is there and fills the rest with grey.
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
        return to_rgb(image), (width / drafted[1][2] if drafted else 1.0)
