# SPDX-License-Identifier: AGPL-3.0-only
"""Reads text in a photo: PP-OCR's detector (DB) and recogniser (CTC), with lines turned upright."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from ..photo import Photo, Pixels
from ..runtime import ModelDamaged, Session
from . import padding
from .layout import order_for_reading
from .quads import find_quads
from .shapes import expect

Float = NDArray[np.float32]
Steps = tuple[NDArray[Any], ...]
"""The likeliest class (T,) and its probability (T,) at each step from left to right."""

# Detection (DB, arXiv 1911.08947), with the base image's values.
_SHORT_SIDE_PX = 736
_BYTES_PER_PIXEL = 300  # memory for detection
_MAX_PIXELS = 2_500_000  # a larger input, such as a long screenshot, is scaled down to this

# Recognition (CTC)
_LINE_HEIGHT_PX = 48
_MIN_WIDTH_PX = 320
_WIDTH_STEP_PX = 32
_MAX_WIDTH_PX = 3200  # a longer line is read in parts
_OVERLAP_PX = 256  # of two parts: wider than the characters cut off at both edges
_MAX_LINE_PX = 48_000
_BATCH_LINES = 3  # of similar width, because padding costs as much time as text
_SURE_SCORE = 0.9  # a line with a lower score is read upside down too; the better reading counts


@dataclass(frozen=True)
class Detector:
    """A network that detects text."""

    session: Session
    example_shape = (1, 3, _SHORT_SIDE_PX, _SHORT_SIDE_PX)

    @classmethod
    def load(cls, session: Session, folder: Path) -> Self:
        """Raises ModelDamaged if the model is of another kind."""
        expect(session, [(None, 3, None, None)], [(None, None, None, None)])
        session.declare([(1, 3, height, width) for width, height in padding.CANVASES_PX])
        return cls(session)


@dataclass(frozen=True)
class Recogniser:
    """A network that reads a line. characters: one for each output class; the first is CTC's blank."""

    session: Session
    characters: tuple[str, ...]
    example_shape = (1, 3, _LINE_HEIGHT_PX, _MIN_WIDTH_PX)

    @classmethod
    def load(cls, session: Session, folder: Path) -> Self:
        """Raises ModelDamaged if the model is of another kind or contains no list of characters."""
        if "character" not in session.metadata:
            raise ModelDamaged("it is another kind of model: it contains no list of characters")
        characters = ("", *session.metadata["character"].rstrip("\n").split("\n"), " ")
        expect(session, [(None, 3, _LINE_HEIGHT_PX, None)], [(None, None, len(characters))])
        session.declare([(padding.LINES, 3, _LINE_HEIGHT_PX, width) for width in padding.LINE_WIDTHS_PX])
        return cls(session, characters)


@dataclass(frozen=True)
class Line:
    """A line of text. quad: (4, 2) corners in pixels of the photo, clockwise from the text's own top left."""

    text: str
    score: float
    quad: Float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The upright rectangle around it: x, y, width, height."""
        (x1, y1), (x2, y2) = self.quad.min(axis=0), self.quad.max(axis=0)
        return float(x1), float(y1), float(x2 - x1), float(y2 - y1)


def read(photo: Photo, detector: Detector, recogniser: Recogniser, min_score: float = 0.5) -> list[Line]:
    """Returns all lines with a score of at least min_score (0 to 1), in reading order."""
    quads, required = detect(photo, detector)
    if not len(quads):
        return []
    min_score = max(min_score, required)
    sides = np.linalg.norm(np.diff(quads[:, :3], axis=1), axis=2)
    pixels = photo.pixels(_LINE_HEIGHT_PX / max(float(sides.min()), 1.0), contrast=True)
    crops = [_crop(pixels, quad) for quad in quads]
    quarters = [int(crop.shape[0] >= 1.5 * crop.shape[1]) for crop in crops]
    crops = [np.rot90(crop, quarter) for crop, quarter in zip(crops, quarters, strict=True)]
    readings, turned = _read_either_way(crops, recogniser)
    lines = [
        Line(text, score, np.roll(quad, -(2 * half + quarter), axis=0))
        for (text, score), half, quarter, quad in zip(readings, turned, quarters, quads, strict=True)
    ]
    lines = [line for line in lines if line.text.strip() and line.score >= min_score]
    order = order_for_reading([line.quad for line in lines], [len(line.text) for line in lines])
    return [lines[i] for i in order]


def _read_either_way(
    crops: Sequence[NDArray[np.uint8]], recogniser: Recogniser
) -> tuple[list[tuple[str, float]], list[bool]]:
    """Returns the better reading of each line, and whether that is upside down. Reads doubtful lines both ways; if most
    of them are upside down, reads all lines both ways."""
    readings = recognise(crops, recogniser)
    turned = [False] * len(crops)
    doubtful = [i for i, (_, score) in enumerate(readings) if score < _SURE_SCORE]
    for again in (doubtful, [i for i in range(len(crops)) if i not in doubtful]):
        for i, other in zip(again, recognise([np.rot90(crops[i], 2) for i in again], recogniser), strict=True):
            if other[1] > readings[i][1]:
                readings[i], turned[i] = other, True
        if 2 * sum(turned) <= len(again):
            break
    return readings, turned


def detect(photo: Photo, detector: Detector) -> tuple[Float, float]:
    """Returns (N, 4, 2) corners of the lines of text, in pixels of the photo, clockwise from the top left; and the
    minimum score of a reading, which is over 0 only if all that was found may be a single character."""
    width, height = photo.width, photo.height
    scale = min(_SHORT_SIDE_PX / min(width, height), 2.0, math.sqrt(_MAX_PIXELS / (width * height)))
    size = (max(round(width * scale / 32), 1) * 32, max(round(height * scale / 32), 1) * 32)
    pixels = photo.pixels(scale, contrast=True, beside=_BYTES_PER_PIXEL * size[0] * size[1])
    found, origin, reduction = pixels.rgb.shape[1::-1], pixels.origin, pixels.scale
    filter = cv2.INTER_AREA if found[0] > size[0] else cv2.INTER_LINEAR
    rgb = np.asarray(cv2.resize(pixels.rgb, size, interpolation=filter), np.uint8)
    del pixels  # frees 3 bytes per pixel of the photo before the network runs
    if detector.session.few_shapes:
        rgb = padding.pad_photo(rgb)
    (output,) = detector.session.run({detector.session.inputs[0].name: _normalize(rgb)})
    quads, required = find_quads(np.ascontiguousarray(output[0, 0, : size[1], : size[0]]))
    quads = (quads * np.divide(found, size) - origin) / reduction
    return np.asarray(np.clip(quads, 0, (width, height)), np.float32), required


def _crop(pixels: Pixels, quad: Float) -> NDArray[np.uint8]:
    """Cuts out the rectangle, turned upright along its own sides."""
    matrix = pixels.transform()
    corners = (quad - 0.5) @ matrix[:, :2].T + matrix[:, 2]
    width, height = (max(round(float(np.linalg.norm(corners[i] - corners[0]))), 1) for i in (1, 3))
    source = corners[[0, 1, 3]].astype(np.float32)
    target = np.array([[0, 0], [width, 0], [0, height]], np.float32) - 0.5
    move = cv2.getAffineTransform(source, target)
    crop = cv2.warpAffine(pixels.rgb, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(crop, np.uint8)


def recognise(crops: Sequence[NDArray[np.uint8]], recogniser: Recogniser) -> list[tuple[str, float]]:
    """Returns the text in each crop (H, W, 3) and its score, 0 to 1."""
    parts = [_split(crop) for crop in crops]
    steps = iter(_classify([part for each in parts for part in each], recogniser))
    return [_decode(_join(*islice(steps, len(each))), recogniser.characters) for each in parts]


def _split(crop: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Splits a crop that is too wide for the network into overlapping parts; the last may be narrower."""
    width = min(_scaled_width(crop), _MAX_LINE_PX)
    if width <= _MAX_WIDTH_PX:
        return [crop]
    scaled = _scale(crop, width)
    return [scaled[:, x : x + _MAX_WIDTH_PX] for x in range(0, width - _OVERLAP_PX, _MAX_WIDTH_PX - _OVERLAP_PX)]


def _scaled_width(crop: NDArray[np.uint8]) -> int:
    height, width = map(int, crop.shape[:2])
    return max(math.ceil(_LINE_HEIGHT_PX * width / height), 1)


def _scale(crop: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    filter = cv2.INTER_AREA if crop.shape[0] > 2 * _LINE_HEIGHT_PX else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(crop, (width, _LINE_HEIGHT_PX), interpolation=filter), np.uint8)


def _classify(crops: Sequence[NDArray[np.uint8]], recogniser: Recogniser) -> list[Steps]:
    """Returns the steps of each crop. Lines of similar width share a batch."""
    widths = [min(_scaled_width(crop), _MAX_WIDTH_PX) for crop in crops]
    order = sorted(range(len(crops)), key=widths.__getitem__)
    steps: dict[int, Steps] = {}
    few = recogniser.session.few_shapes
    step = padding.LINES if few else _BATCH_LINES
    for start in range(0, len(order), step):
        chosen = order[start : start + step]
        width = max(_MIN_WIDTH_PX, math.ceil(widths[chosen[-1]] / _WIDTH_STEP_PX) * _WIDTH_STEP_PX)
        if few:
            width = padding.fit(width, padding.LINE_WIDTHS_PX)
        batch = np.zeros((step if few else len(chosen), 3, _LINE_HEIGHT_PX, width), np.float32)
        for row, i in zip(batch, chosen, strict=False):
            row[:, :, : widths[i]] = _normalize(_scale(crops[i], widths[i]))[0]
        (output,) = recogniser.session.run({recogniser.session.inputs[0].name: batch})
        steps.update(zip(chosen, zip(output.argmax(axis=2), output.max(axis=2), strict=True), strict=False))
    return [steps[i] for i in range(len(crops))]


def _join(left: Steps, *rest: Steps) -> Steps:
    """Joins the steps of a line's parts in the widest gap between characters in each overlap."""
    if not rest:
        return left
    right = _join(*rest)
    shared = len(left[0]) * _OVERLAP_PX // _MAX_WIDTH_PX
    gaps = ((left[0][-shared:] == 0) & (right[0][:shared] == 0)).astype(np.uint8)
    gaps[: shared // 4] = gaps[-shared // 4 :] = 0  # an edge may cut a character
    gaps[shared // 2] = 1  # used if there is no gap
    cut = int(cv2.distanceTransform(gaps[None], cv2.DIST_L1, 3)[0].argmax())
    return tuple(np.concatenate([a[: cut - shared], b[cut:]]) for a, b in zip(left, right, strict=True))


def _decode(steps: Steps, characters: Sequence[str]) -> tuple[str, float]:
    """Greedy CTC (Graves 2006): merges repeats and drops blanks; the score is the mean of the rest."""
    classes, scores = steps
    keep = (classes != 0) & np.append(True, classes[1:] != classes[:-1])
    return "".join(characters[c] for c in classes[keep]), float(scores[keep].mean()) if keep.any() else 0.0


def _normalize(rgb: NDArray[np.uint8]) -> Float:
    """Converts (H, W, 3) RGB to (1, 3, H, W) BGR from -1 to 1: PP-OCR was trained in OpenCV's channel order."""
    return np.asarray(cv2.dnn.blobFromImage(rgb, 1 / 127.5, mean=(127.5,) * 3, swapRB=True), np.float32)
