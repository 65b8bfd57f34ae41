# SPDX-License-Identifier: AGPL-3.0-only
"""A photo: reads a file's header, then decodes it to at least the size asked for and turns it upright."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .colours import to_rgb
from .decoders import TURNS, PhotoError, explain_errors
from .source import Source

MAX_SIDE_PX = 10_000
"""The longest side that the API accepts."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Pixels:
    """Decoded pixels of a whole photo. rgb: (H, W, 3) uint8, turned upright. scale: decoded pixels per pixel of the
    photo, 1 or less. origin: the photo's top left corner in rgb, in decoded pixels (x, y), from 0 to 1."""

    rgb: NDArray[np.uint8]
    scale: float
    origin: tuple[float, float]

    def transform(self) -> NDArray[np.float64]:
        """The (2, 3) matrix from pixel indices (x, y) in the photo to those in rgb; integers are pixel centres."""
        s, (x, y) = self.scale, self.origin
        return np.array([[s, 0, x + (s - 1) / 2], [0, s, y + (s - 1) / 2]])


class Photo:
    """One photo. Not thread-safe."""

    def __init__(self, source: Source) -> None:
        self.kind, self.animated, self.decode_ms = source.kind, source.is_animated, 0.0
        self.width, self.height = source.size[::-1] if source.orientation >= 5 else source.size
        self._source = source
        self._decoded: Image.Image | None = None
        self._scale, self._factor = 0.0, 1.0  # requested from the decoder; photo pixels per decoded pixel

    @classmethod
    def open(cls, data: bytes) -> Self:
        """Reads only the header. Raises PhotoError, or DecoderMissing if the kind needs another library."""
        if not data:
            raise PhotoError("the file is empty")
        source = Source.open(data)
        if not 0 < max(source.size) <= MAX_SIDE_PX:
            raise PhotoError("height or width out of range")
        return cls(source)

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
        """Scales the part `box` of the photo (left, top, right, bottom in its pixels; None: the whole) to `size`.

        size: (width, height). Returns (height, width, 3) uint8 RGB. The decoder scales down to `oversample` times the
        size: 2 keeps 50 dB against a full decode, 1 is faster.
        """
        box = box or (0.0, 0.0, float(self.width), float(self.height))
        with self._timed():
            image = self._decode(oversample * max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1])))
            edges = np.array(box) / self._factor + self._origin(image) * 2
            left, top, right, bottom = np.clip(edges, 0, image.size * 2).tolist()  # rounding may exceed the edge
            # reducing_gap applies a box filter down to four times the size first: as good, and much faster
            return np.asarray(image.resize(size, filter, (left, top, right, bottom), reducing_gap=4.0))

    def pixels(self, scale: float, *, contrast: bool = False, beside: int = 0) -> Pixels:
        """Decodes the whole photo with at least `scale` decoded pixels per pixel, or in full if scale is over 1.
        Transparency becomes white; with contrast, black if what is drawn on it is light, so that it can be read.
        beside: bytes of memory that the caller allocates next."""
        with self._timed():
            image = self._decode(scale, contrast=contrast, whole=True, beside=beside)
            return Pixels(np.asarray(image), 1 / self._factor, self._origin(image))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.decode_ms += (time.perf_counter() - started) * 1000

    def _origin(self, image: Image.Image) -> tuple[float, float]:
        """Pixels.origin. Decoders round sizes up, at the edges that are right and bottom before the photo is turned."""
        x, y = image.width - self.width / self._factor, image.height - self.height / self._factor
        turn = self._source.orientation
        return x if turn in (2, 3, 6, 7) else 0.0, y if turn in (3, 4, 7, 8) else 0.0

    def _decode(self, scale: float, *, contrast: bool = False, whole: bool = False, beside: int = 0) -> Image.Image:
        """Decodes to upright RGB with at least `scale` decoded pixels per pixel. Keeps the largest for later calls."""
        if self._decoded is None or max(self._scale, 1 / self._factor) < min(scale, 1):
            self._source.require_memory(scale, whole=whole, beside=beside)
            stored, self._factor = self._source.decode(scale)
            with explain_errors("the photo is damaged"):
                self._scale, rgb = scale, to_rgb(stored, contrast=contrast)
            turn = TURNS.get(self._source.orientation)
            self._decoded = rgb if turn is None else rgb.transpose(turn)
        return self._decoded
