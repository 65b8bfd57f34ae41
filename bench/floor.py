# SPDX-License-Identifier: AGPL-3.0-only
"""The floor: what a photo costs at least. Bare onnxruntime and the fastest decode that keeps 50 dB, in one process.

The work that the answer needs and nothing else: no HTTP, no queue, no EXIF, no bad files. Its own lines, so that what
makes the service slower does not make its measure slower too.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from bench.service import ocr_weights

Float = NDArray[np.float32]
Pixels = NDArray[np.uint8]

CORES = len(os.sched_getaffinity(0))
THREADS = min(CORES, 4)
"""Of one inference, as the service chooses them."""

_DETECTED = 640  # the side of SCRFD's input
_ARCFACE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float32
)
_LINE, _LINES_AT_ONCE = 48, 6
_JPEG = b"\xff\xd8"
_DECODES = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def open_session(model: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def decoded(data: bytes, wanted: float) -> Pixels:
    """(H, W, 3) BGR with at least `wanted` of the photo's pixels a side: libjpeg drops the others while it decodes."""
    scale = next((n for n in (8, 4, 2) if 1 / n >= wanted), 1) if data.startswith(_JPEG) else 1
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), _DECODES[scale]), np.uint8)


def size(data: bytes) -> tuple[int, int]:
    """Width and height by the header."""
    return Image.open(BytesIO(data)).size


class Floor:
    """One photo after the other. cache: where the models lie; name: CLIP's and the faces'. threads: of an inference."""

    def __init__(self, cache: Path, name: str, faces: str, threads: int = THREADS) -> None:
        config = json.loads((cache / "clip" / name / "visual" / "preprocess_cfg.json").read_text())
        self._mean, self._std = (np.array(config[key], np.float32) for key in ("mean", "std"))
        self._clip = open_session(cache / "clip" / name / "visual" / "model.onnx", threads)
        folder, weights = cache / "facial-recognition" / faces, ocr_weights()
        self._detector, self._recogniser = (
            open_session(folder / kind / "model.onnx", threads) for kind in ("detection", "recognition")
        )
        self._finder, self._reader = (open_session(weights[kind], threads) for kind in ("detection", "recognition"))
        self._characters = ["", *self._reader.get_modelmeta().custom_metadata_map["character"].split("\n"), " "]

    def task(self, route: str) -> Callable[[bytes], object]:
        return {"/clip/img": self.clip, "/represent": self.faces, "/ocr": self.ocr}[route]

    def clip(self, data: bytes) -> Float:
        """(D,) the photo's vector."""
        pixels = np.asarray(clip_photo(data), np.float32) * (1 / (255 * self._std)) - self._mean / self._std
        return np.asarray(_run(self._clip, np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))[0][0])

    def faces(self, data: bytes) -> Float:
        """(N, 512) vectors of the faces."""
        width, height = size(data)
        scale = _DETECTED / max(width, height)
        bgr = decoded(data, 1.5 * scale)
        wanted = int(width * scale), int(height * scale)
        canvas = np.zeros((_DETECTED, _DETECTED, 3), np.uint8)
        canvas[: wanted[1], : wanted[0]] = cv2.resize(bgr, wanted, interpolation=cv2.INTER_AREA)
        points = scrfd(_run(self._detector, _input([canvas], 128)))[:, 5:].reshape(-1, 5, 2) / scale
        if not len(points):
            return np.empty((0, 512), np.float32)
        moves = [arcface(five) for five in points]
        finest = max(float(np.hypot(move[0, 0], move[1, 0])) for move in moves)
        if finest * width > bgr.shape[1] < width:
            bgr = decoded(data, finest)
        for move in moves:
            move[:, :2] *= width / bgr.shape[1]
        crops = [cv2.warpAffine(bgr, move, (112, 112), flags=cv2.INTER_LINEAR) for move in moves]
        vectors = _run(self._recogniser, _input(crops))[0]
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def ocr(self, data: bytes) -> list[str]:
        """The lines from top to bottom."""
        width, height = size(data)
        scale = 736 / min(width, height)
        bgr = decoded(data, 2 * scale)
        small = round(width * scale / 32) * 32, round(height * scale / 32) * 32
        resized = cv2.resize(bgr, small, interpolation=cv2.INTER_AREA)
        boxes = text_boxes(_run(self._finder, _input([resized], swap=False))[0][0, 0])
        if not boxes:
            return []
        finest = _LINE / min(min(extent) for _, extent, _ in boxes) * small[0] / width
        if finest * width > bgr.shape[1] < width:
            bgr = decoded(data, finest)
        boxes.sort(key=lambda box: box[0][1])
        return self._read([_line(bgr, box, bgr.shape[1] / small[0]) for box in boxes])

    def _read(self, lines: list[Pixels]) -> list[str]:
        texts = [""] * len(lines)
        order = sorted(range(len(lines)), key=lambda i: lines[i].shape[1])
        for start in range(0, len(order), _LINES_AT_ONCE):
            chosen = order[start : start + _LINES_AT_ONCE]
            batch = np.full((len(chosen), _LINE, max(lines[chosen[-1]].shape[1], 320), 3), 127, np.uint8)
            for row, i in zip(batch, chosen, strict=True):
                row[:, : lines[i].shape[1]] = lines[i]
            batch = _input(list(batch), swap=False)
            for i, best in zip(chosen, _run(self._reader, batch)[0].argmax(axis=2), strict=True):
                kept = best[np.flatnonzero(np.diff(best, prepend=0))]
                texts[i] = "".join(self._characters[c] for c in kept)
        return [text for text in texts if text.strip()]


Box = tuple[Sequence[float], Sequence[float], float]


def clip_photo(data: bytes, side: int = 224) -> Image.Image:
    """The middle of the photo as CLIP wants it, by Pillow's bicubic filter: all that it costs but the model."""
    width, height = size(data)
    if data.startswith(_JPEG):
        image: Image.Image = Image.open(BytesIO(data))
        larger = 2 * side / min(width, height)
        image.draft("RGB", (int(width * larger), int(height * larger)))
    else:
        image = Image.fromarray(np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)))
    short = min(image.size)
    left, top = ((edge - short) / 2 for edge in image.size)
    box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)


def scrfd(outputs: Sequence[Float], min_score: float = 0.65) -> Float:
    """(N, 15) score, box (x1, y1, x2, y2) and five points of each face, in pixels of the input."""
    found = []
    for level, stride in enumerate((8, 16, 32)):
        score, box, points = (outputs[level + 3 * i].reshape(-1, width) for i, width in enumerate((1, 4, 10)))
        sure = np.flatnonzero(score >= min_score)
        row, column = np.divmod(sure // 2, _DETECTED // stride)
        centre = np.stack([column, row] * 7, axis=1) * stride
        reach = np.hstack([box[sure], points[sure]]) * (-1, -1, *[1] * 12)
        found.append(np.hstack([score[sure], centre + reach * stride]))
    faces = np.concatenate(found).astype(np.float32)
    corners = faces[:, 1:5] - np.hstack([np.zeros((len(faces), 2)), faces[:, 1:3]])
    kept = cv2.dnn.NMSBoxes(corners.tolist(), faces[:, 0].tolist(), min_score, 0.4)
    return np.asarray(faces[np.asarray(kept, int).ravel()])


def arcface(points: Float) -> NDArray[np.float64]:
    """(2, 3) matrix that brings a face's points onto ArcFace's crop."""
    return np.asarray(cv2.estimateAffinePartial2D(points, _ARCFACE, method=cv2.LMEDS)[0], np.float64)


def text_boxes(probability: Float) -> list[Box]:
    """Centre, extent and angle of what holds text in DB's map of it (H, W)."""
    mask = cv2.dilate((probability > 0.3).astype(np.uint8), np.ones((2, 2), np.uint8))
    boxes: list[Box] = []
    for contour in cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
        centre, (w, h), angle = cv2.minAreaRect(contour)
        x, y, across, down = cv2.boundingRect(contour)
        if min(w, h) < 3 or cv2.mean(probability[y : y + down, x : x + across])[0] < 0.5:
            continue
        grown = 1.6 * w * h / (w + h)
        if w < h:
            w, h, angle = h, w, angle - 90
        boxes.append((centre, (w + grown, h + grown), (angle + 90) % 180 - 90))
    return boxes


def _line(bgr: Pixels, box: Box, ratio: float) -> Pixels:
    """(48, W, 3): what lies in the box, upright. ratio: pixels of bgr to one of the map that the box is of."""
    (x, y), (w, h), angle = box
    width = max(round(_LINE * w / h), 1)
    move = cv2.getRotationMatrix2D((x * ratio, y * ratio), angle, _LINE / (h * ratio))
    move[:, 2] += np.array([width / 2 - x * ratio, _LINE / 2 - y * ratio])
    return np.asarray(cv2.warpAffine(bgr, move, (width, _LINE), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _input(pictures: Sequence[Any], unit: float = 127.5, swap: bool = True) -> Float:
    """(N, 3, H, W) from about -1 to 1. swap: to RGB; PP-OCR wants BGR."""
    return np.asarray(cv2.dnn.blobFromImages(list(pictures), 1 / unit, mean=(127.5,) * 3, swapRB=swap), np.float32)


def _run(session: ort.InferenceSession, pixels: Float) -> list[Float]:
    return list(session.run(None, {session.get_inputs()[0].name: pixels}))


def combinations() -> list[tuple[int, int]]:
    """Threads of one inference and photos at once: what could use all cores best."""
    single, several = 1, THREADS
    fit = max(CORES // several, 1)
    wanted = [(single, CORES), (single, CORES + 1), (single, 2 * CORES)]
    wanted += [(several, fit), (several, fit + 1), (several, fit + 2)]
    return list(dict.fromkeys(wanted))


def photos_a_second(task: Callable[[bytes], object], photos: Sequence[bytes], workers: int) -> None:
    """All the photos by so many workers."""
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(task, photos):
            pass
