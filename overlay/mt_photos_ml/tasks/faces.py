# SPDX-License-Identifier: AGPL-3.0-only
"""Faces: SCRFD detects them, ArcFace turns each into a vector."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..photo import Box, Photo
from ..runtime import Session
from . import padding
from .shapes import expect
from .vectors import normalize

Float = NDArray[np.float32]

_INPUT_PX = 640
_STRIDES_PX = (8, 16, 32)
_ANCHORS_PER_CELL = 2
_MAX_IOU = 0.4
_BATCH_FACES = 32  # limits the memory for a photo of a crowd
_CROP_PX = 112
# Long side divided by short side. If a panorama is scaled to 640 pixels, its short side has at most 213, too few to
# detect a face a tenth as high. Photos, films (2.4) and screenshots (22:9) stay below and are searched once.
_PANORAMA_RATIO = 3.0
_TILE_MARGIN = 0.05  # of a tile's side; a face closer to the next tile may be cut off

# Positions of eyes, nose and mouth corners in ArcFace's 112 x 112 crop (insightface, face_align).
_TEMPLATE_PX = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float64
)


@dataclass(frozen=True)
class Detector:
    """An SCRFD network. It outputs scores, boxes and five points at three strides."""

    session: Session
    example_shape = (1, 3, _INPUT_PX, _INPUT_PX)

    @classmethod
    def load(cls, session: Session, folder: Path) -> Self:
        """Raises ModelDamaged if the model is of another kind."""
        expect(session, [(None, 3, _INPUT_PX, _INPUT_PX)], [None] * 3 * len(_STRIDES_PX))
        session.declare([cls.example_shape])
        return cls(session)


@dataclass(frozen=True)
class Recogniser:
    """An ArcFace network. batch: faces per run; None: any number."""

    session: Session
    batch: int | None
    example_shape = (1, 3, _CROP_PX, _CROP_PX)

    @classmethod
    def load(cls, session: Session, folder: Path) -> Self:
        """Raises ModelDamaged if the model is of another kind."""
        expect(session, [(None, 3, _CROP_PX, _CROP_PX)], [(None, None)])
        first = session.inputs[0].shape[0]
        session.declare([(size, *cls.example_shape[1:]) for size in padding.FACES])
        return cls(session, first if isinstance(first, int) and first > 0 else None)


@dataclass(frozen=True)
class Face:
    """A face. box: x1, y1, x2, y2 in pixels of the photo. score: 0 to 1. points: (5, 2) eyes, nose, mouth corners, from
    left to right. embedding: (512,) of unit length."""

    box: Float
    score: float
    points: Float
    embedding: Float


def find(photo: Photo, detector: Detector, recogniser: Recogniser, min_score: float = 0.65) -> list[Face]:
    """Returns all faces with a score of at least min_score (0 to 1), the highest first."""
    boxes, scores, points = detect(photo, detector, min_score)
    if not len(boxes):
        return []
    embeddings = embed(_align(photo, points), recogniser)
    return [Face(*face) for face in zip(boxes, scores.tolist(), points, embeddings, strict=True)]


def detect(photo: Photo, detector: Detector, min_score: float) -> tuple[Float, Float, Float]:
    """Returns boxes (N, 4), scores (N,) and points (N, 5, 2) in pixels of the photo, the highest score first."""
    views = [_detect_in(box, photo, detector, min_score) for box in _views(photo)]
    return views[0] if len(views) == 1 else _keep_surest(*map(np.concatenate, zip(*views, strict=True)))


def _views(photo: Photo) -> list[Box]:
    """The parts to search: the whole photo, and for a panorama also squares along its long side. Neighbouring squares
    overlap by half, so that at least one contains the whole of every face up to 0.4 of a square's side."""
    whole = (0.0, 0.0, float(photo.width), float(photo.height))
    short, long = sorted(whole[2:])
    side = max(short, float(_INPUT_PX))  # a smaller square would only be enlarged
    if not _is_panorama(photo) or long <= side:
        return [whole]
    starts = np.linspace(0, long - side, math.ceil(2 * (long - side) / side) + 1).tolist()
    wide = photo.width > photo.height
    return [(x, 0.0, x + side, short) if wide else (0.0, x, short, x + side) for x in starts] + [whole]


def _is_panorama(photo: Photo) -> bool:
    return max(photo.width, photo.height) >= _PANORAMA_RATIO * min(photo.width, photo.height)


def _detect_in(box: Box, photo: Photo, detector: Detector, min_score: float) -> tuple[Float, Float, Float]:
    """Detects faces in a part of the photo. Drops those near an edge beyond which the photo continues."""
    size = box[2] - box[0], box[3] - box[1]
    ratio = _INPUT_PX / max(size)
    width, height = max(int(size[0] * ratio), 1), max(int(size[1] * ratio), 1)
    rgb = photo.resized((width, height), box=box, filter=Image.Resampling.BILINEAR, oversample=1.0)
    canvas = np.pad(rgb, ((0, _INPUT_PX - height), (0, _INPUT_PX - width), (0, 0)))
    pixels = cv2.dnn.blobFromImage(canvas, 1 / 128, mean=(127.5,) * 3)
    outputs = detector.session.run({detector.session.inputs[0].name: pixels})
    boxes, scores, points = _decode(outputs, min_score)
    scale = np.array([size[0] / width, size[1] / height], np.float32)
    if not _is_panorama(photo):
        scale[0] = scale[1]  # although they round differently: users' databases hold the base image's boxes
    origin = np.array(box[:2], np.float32)
    boxes, points = boxes * np.tile(scale, 2) + np.tile(origin, 2), points * scale + origin
    margin = _TILE_MARGIN * max(size)
    low = np.where(origin > 0, origin + margin, -np.inf)
    high = np.where(np.less(box[2:], (photo.width, photo.height)), np.array(box[2:]) - margin, np.inf)
    whole = ((boxes[:, :2] >= low) & (boxes[:, 2:] <= high)).all(axis=1)
    return boxes[whole], scores[whole], points[whole]


def _decode(outputs: list[NDArray[np.float32]], min_score: float) -> tuple[Float, Float, Float]:
    """Decodes SCRFD's nine outputs (arXiv 2105.04714) in pixels of its input. Drops faces that overlap a better one."""
    boxes, scores, points = [], [], []
    for level, stride in enumerate(_STRIDES_PX):
        score, box, five = (outputs[level + 3 * i].reshape(-1, size) for i, size in enumerate((1, 4, 10)))
        sure = np.flatnonzero(score[:, 0] >= min_score)
        centres = _anchor_centres(stride)[sure]
        reach = box[sure] * stride
        boxes.append(np.concatenate([centres - reach[:, :2], centres + reach[:, 2:]], axis=1))
        points.append(centres[:, None] + five[sure].reshape(-1, 5, 2) * stride)
        scores.append(score[sure, 0])
    return _keep_surest(*map(np.concatenate, (boxes, scores, points)))


def _keep_surest(boxes: Float, scores: Float, points: Float) -> tuple[Float, Float, Float]:
    """Sorts by score, highest first, and drops faces that overlap a better one."""
    order = np.argsort(-scores, kind="stable")
    kept = order[_suppress_overlaps(boxes[order])]
    return boxes[kept], scores[kept], points[kept]


@lru_cache(len(_STRIDES_PX))
def _anchor_centres(stride: int) -> Float:
    """Returns (cells * anchors, 2): x and y of every anchor, row by row."""
    steps = np.arange(_INPUT_PX // stride, dtype=np.float32) * stride
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    return np.repeat(grid, _ANCHORS_PER_CELL, axis=0)


def _suppress_overlaps(boxes: Float) -> list[int]:
    """Non-maximum suppression: the indices to keep of boxes (N, 4), sorted best first. A kept box has an IoU of at most
    0.4 with each better kept one; sides are measured in whole pixels."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    left, kept = np.arange(len(boxes)), []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(int(best))
        wide = np.maximum(0, np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left]) + 1)
        high = np.maximum(0, np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left]) + 1)
        left = left[wide * high / (areas[best] + areas[left] - wide * high) <= _MAX_IOU]
    return kept


def _align(photo: Photo, points: Float) -> NDArray[np.uint8]:
    """Returns (N, 112, 112, 3) RGB: each face rotated and scaled to match ArcFace's template."""
    moves = [estimate_similarity(five.astype(np.float64), _TEMPLATE_PX) for five in points]
    pixels = photo.pixels(max(float(np.hypot(move[0, 0], move[1, 0])) for move in moves))
    to_photo = cv2.invertAffineTransform(pixels.transform())
    crops = np.empty((len(points), _CROP_PX, _CROP_PX, 3), np.uint8)
    for crop, move in zip(crops, moves, strict=True):
        whole = move[:, :2] @ to_photo[:, :2], move[:, :2] @ to_photo[:, 2:] + move[:, 2:]
        cv2.warpAffine(pixels.rgb, np.hstack(whole), (_CROP_PX, _CROP_PX), dst=crop, flags=cv2.INTER_LINEAR)
    return crops


def estimate_similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the (2, 3) matrix of rotation, uniform scale and shift that best maps points (N, 2) onto others
    (Umeyama 1991)."""
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    a, b = source - source_mean, target - target_mean
    u, singular, vt = np.linalg.svd(b.T @ a / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    rotation = u @ np.diag(sign) @ vt
    scale = (singular * sign).sum() / max(a.var(axis=0).sum(), 1e-12)
    return np.hstack([scale * rotation, (target_mean - scale * rotation @ source_mean)[:, None]])


def embed(crops: NDArray[np.uint8], recogniser: Recogniser) -> Float:
    """Returns (N, 512) vectors of unit length for crops (N, 112, 112, 3) in RGB."""
    name = recogniser.session.inputs[0].name
    pixels = (crops.transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 127.5
    most = recogniser.batch or _BATCH_FACES
    if recogniser.session.few_shapes and not recogniser.batch:
        most = padding.fit(len(pixels), padding.FACES)
        pixels = np.pad(pixels, ((0, -len(pixels) % most), (0, 0), (0, 0), (0, 0)))
    batches = (pixels[i : i + most] for i in range(0, len(pixels), most))
    return normalize(np.concatenate([recogniser.session.run({name: batch})[0] for batch in batches])[: len(crops)])
