# SPDX-License-Identifier: AGPL-3.0-only
"""Text in a photo: PP-OCR's detector (DB) and recogniser (CTC), lines turned upright and sorted for reading."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from ..photo import Photo, Pixels
from ..runtime import ModelDamaged, Session
from . import padding
from .shapes import expect

Float = NDArray[np.float32]

# Detection (DB, arXiv 1911.08947), with the base image's values.
_SHORT_SIDE_PX = 736
_MAX_PIXELS = 2_500_000  # a detection takes 300 MB a megapixel, so a long screenshot is scaled down to this
_MIN_PROBABILITY = 0.3
_MIN_BOX_PROBABILITY = 0.5
_UNCLIP_RATIO = 1.6
_MAX_BOXES = 1000

# Recognition (CTC)
_LINE_HEIGHT_PX = 48
_MIN_WIDTH_PX = 320
_WIDTH_STEP_PX = 32
_MAX_WIDTH_PX = 3200
_BATCH_LINES = 3  # of similar width, since padding costs as much time as text
_SURE_SCORE = 0.9  # a line with a lower score is read upside down too; the better reading counts


@dataclass(frozen=True)
class Detector:
    """A network that finds text."""

    session: Session
    example_shape = (1, 3, _SHORT_SIDE_PX, _SHORT_SIDE_PX)

    @classmethod
    def load(cls, session: Session, folder: Path) -> Self:
        """Raises ModelDamaged for another kind of model."""
        expect(session, [(None, 3, None, None)], [(None, None, None, None)])
        session.declare([(1, 3, height, width) for width, height in padding.CANVASES_PX])
        return cls(session)


@dataclass(frozen=True)
class Recogniser:
    """A network that reads a line. characters: of each output class; the first is CTC's blank."""

    session: Session
    characters: tuple[str, ...]
    example_shape = (1, 3, _LINE_HEIGHT_PX, _MIN_WIDTH_PX)

    @classmethod
    def load(cls, session: Session, folder: Path) -> Self:
        """Raises ModelDamaged for another kind of model, or one that carries no list of characters."""
        if "character" not in session.metadata:
            raise ModelDamaged("it is another kind of model, it carries no list of characters")
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
    """All lines with a score of at least min_score (0 to 1), as a person would read them."""
    quads = detect(photo, detector)
    if not len(quads):
        return []
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
    return sort_for_reading([line for line in lines if line.text.strip() and line.score >= min_score])


def _read_either_way(
    crops: Sequence[NDArray[np.uint8]], recogniser: Recogniser
) -> tuple[list[tuple[str, float]], list[bool]]:
    """The better reading of each line, and whether that is upside down. Reads the doubtful lines twice; all, if most of
    those are upside down."""
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


def detect(photo: Photo, detector: Detector) -> Float:
    """(N, 4, 2) corners of the lines of text, in pixels of the photo, clockwise from the top left."""
    width, height = photo.width, photo.height
    scale = min(_SHORT_SIDE_PX / min(width, height), 2.0, math.sqrt(_MAX_PIXELS / (width * height)))
    size = (max(round(width * scale / 32), 1) * 32, max(round(height * scale / 32), 1) * 32)
    pixels = photo.pixels(scale, contrast=True)
    found = pixels.rgb.shape[1::-1]
    filter = cv2.INTER_AREA if found[0] > size[0] else cv2.INTER_LINEAR
    rgb = np.asarray(cv2.resize(pixels.rgb, size, interpolation=filter), np.uint8)
    if detector.session.few_shapes:
        rgb = padding.pad_photo(rgb)
    (output,) = detector.session.run({detector.session.inputs[0].name: _normalize(rgb)})
    quads = (
        _find_quads(np.ascontiguousarray(output[0, 0, : size[1], : size[0]])) * np.divide(found, size) - pixels.origin
    ) / pixels.scale
    return np.asarray(np.clip(quads, 0, (width, height)), np.float32)


def _find_quads(probability: Float) -> Float:
    """(N, 4, 2) corners of rectangles around text, in pixels of a map (H, W) of its probability."""
    mask = cv2.dilate((probability > _MIN_PROBABILITY).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    quads = []
    for contour in contours[:_MAX_BOXES]:
        centre, (w, h), angle = rectangle = cv2.minAreaRect(contour)
        if min(w, h) < 3 or _mean_probability(probability, cv2.boxPoints(rectangle)) < _MIN_BOX_PROBABILITY:
            continue
        grown = _UNCLIP_RATIO * w * h / (w + h)
        quads.append(_order_corners(cv2.boxPoints((centre, (w + grown, h + grown), angle))))
    limit = np.array(probability.shape[::-1], np.float32)
    return np.clip(np.reshape(quads, (-1, 4, 2)), 0, limit)


def _mean_probability(probability: Float, quad: NDArray[Any]) -> float:
    edges = np.floor(quad.min(axis=0)), np.ceil(quad.max(axis=0))
    (left, top), (right, bottom) = np.clip(edges, 0, np.subtract(probability.shape[::-1], 1)).astype(int)
    mask = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(mask, [(quad - (left, top)).astype(np.int32)], 1)
    return float(cv2.mean(probability[top : bottom + 1, left : right + 1], mask)[0])


def _order_corners(quad: NDArray[Any]) -> Float:
    """The corners clockwise, from the upper one of the two on the left."""
    by_x = quad[np.argsort(quad[:, 0], kind="stable")]
    (top_left, bottom_left), (top_right, bottom_right) = (half[np.argsort(half[:, 1])] for half in (by_x[:2], by_x[2:]))
    return np.stack([top_left, top_right, bottom_right, bottom_left])


def _crop(pixels: Pixels, quad: Float) -> NDArray[np.uint8]:
    """The rectangle's content, upright along its own sides."""
    matrix = pixels.transform()
    corners = (quad - 0.5) @ matrix[:, :2].T + matrix[:, 2]
    width, height = (max(round(float(np.linalg.norm(corners[i] - corners[0]))), 1) for i in (1, 3))
    source = corners[[0, 1, 3]].astype(np.float32)
    target = np.array([[0, 0], [width, 0], [0, height]], np.float32) - 0.5
    move = cv2.getAffineTransform(source, target)
    crop = cv2.warpAffine(pixels.rgb, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(crop, np.uint8)


def recognise(crops: Sequence[NDArray[np.uint8]], recogniser: Recogniser) -> list[tuple[str, float]]:
    """The text in each crop (H, W, 3) and how sure that is, 0 to 1. Lines of similar width share a batch."""
    ratios = (_LINE_HEIGHT_PX * crop.shape[1] / crop.shape[0] for crop in crops)
    widths = [min(max(math.ceil(ratio), 1), _MAX_WIDTH_PX) for ratio in ratios]
    order = sorted(range(len(crops)), key=widths.__getitem__)
    readings: list[tuple[str, float]] = [("", 0.0)] * len(crops)
    few = recogniser.session.few_shapes
    step = padding.LINES if few else _BATCH_LINES
    for start in range(0, len(order), step):
        chosen = order[start : start + step]
        width = max(_MIN_WIDTH_PX, math.ceil(widths[chosen[-1]] / _WIDTH_STEP_PX) * _WIDTH_STEP_PX)
        if few:
            width = padding.fit(width, padding.LINE_WIDTHS_PX)
        batch = np.zeros((step if few else len(chosen), 3, _LINE_HEIGHT_PX, width), np.float32)
        for row, i in zip(batch, chosen, strict=False):
            filter = cv2.INTER_AREA if crops[i].shape[0] > 2 * _LINE_HEIGHT_PX else cv2.INTER_LINEAR
            scaled = cv2.resize(crops[i], (widths[i], _LINE_HEIGHT_PX), interpolation=filter)
            row[:, :, : widths[i]] = _normalize(np.asarray(scaled, np.uint8))[0]
        (output,) = recogniser.session.run({recogniser.session.inputs[0].name: batch})
        for i, reading in zip(chosen, _decode(output[: len(chosen)], recogniser.characters), strict=True):
            readings[i] = reading
    return readings


def _decode(output: Float, characters: Sequence[str]) -> list[tuple[str, float]]:
    """Greedy CTC (Graves 2006) of (N, T, classes): repeats merged, blanks dropped, the score the mean of the rest."""
    best, probability = output.argmax(axis=2), output.max(axis=2)
    kept = (best != 0) & np.pad(best[:, 1:] != best[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return [
        ("".join(characters[c] for c in classes[keep]), float(scores[keep].mean()) if keep.any() else 0.0)
        for classes, scores, keep in zip(best, probability, kept, strict=True)
    ]


def _normalize(rgb: NDArray[np.uint8]) -> Float:
    """(H, W, 3) RGB to (1, 3, H, W) BGR from -1 to 1: PP-OCR was trained on OpenCV's order."""
    return np.asarray(cv2.dnn.blobFromImage(rgb, 1 / 127.5, mean=(127.5,) * 3, swapRB=True), np.float32)


def sort_for_reading(lines: Sequence[Line]) -> list[Line]:
    """Rows from top to bottom, each from left to right, in the direction of most of the text."""
    if not lines:
        return []
    along = np.stack([line.quad[1] - line.quad[0] for line in lines])
    quarters = np.round(np.arctan2(along[:, 1], along[:, 0]) / (np.pi / 2)).astype(int) % 4
    main = int(np.bincount(quarters, weights=[len(line.text) for line in lines], minlength=4).argmax())
    angle = -main * np.pi / 2
    upright = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centres = np.stack([line.quad.mean(axis=0) for line in lines]) @ upright.T
    extents = np.stack([np.ptp(line.quad @ upright.T, axis=0) for line in lines])
    rows: list[list[int]] = []
    for i in np.argsort(centres[:, 1], kind="stable"):
        last = rows[-1][-1] if rows else i
        if not rows or abs(centres[i, 1] - centres[last, 1]) >= 0.5 * min(extents[i, 1], extents[last, 1]):
            rows.append([])
        rows[-1].append(int(i))
    return [lines[i] for row in rows for i in sorted(row, key=lambda i: centres[i, 0])]
