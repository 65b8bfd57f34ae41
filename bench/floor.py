# SPDX-License-Identifier: AGPL-3.0-only
"""The floor: what a photo costs at least. Bare onnxruntime and the fastest decode that keeps 50 dB, in one process.

Only the work that the answer needs: no HTTP, no queue, no EXIF, no bad files, no slanted lines. None of it is the
service's code, so what makes the service slower does not make the floor slower too.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from bench.service import OCR_MODELS
from demo.pictures import ARCFACE

Float = NDArray[np.float32]
Pixels = NDArray[np.uint8]

CORES = len(os.sched_getaffinity(0))
THREADS = min(CORES, 4)  # of one inference, as the service chooses them
SHORT_SIDE, LINE_HEIGHT = 736, 48  # pixels of the photo in which text is found, and of a line that is read
_DETECTED = 640  # pixels of a side of SCRFD's input


class Floor:
    """One photo after the other, by route. clip, faces: folders of the models. threads: of an inference."""

    def __init__(self, clip: Path, faces: Path, threads: int = THREADS) -> None:
        self._visual, self._threads = clip / "visual", threads
        self._detector, self._recogniser = (faces / kind / "model.onnx" for kind in ("detection", "recognition"))
        config = json.loads((self._visual / "preprocess_cfg.json").read_text())
        self._mean, self._std = (np.array(config[key], np.float32) for key in ("mean", "std"))
        self.tasks: dict[str, Callable[[bytes], Float | list[str]]] = {
            "/clip/img": self.clip,
            "/represent": self.faces,
            "/ocr": self.ocr,
        }

    def clip(self, data: bytes) -> Float:
        """(D,) the photo's vector."""
        return self.embed_photo(clip_photo(data))

    def faces(self, data: bytes) -> Float:
        """(N, 512) vectors of the faces."""
        bgr = _decode(data, 1.5 * _DETECTED / max(_size(data)))
        points = self.find_faces(bgr)
        finer = _refine(data, bgr, max((np.hypot(*_crop(five)[:, 0]) for five in points), default=0))
        return self.embed_faces(finer, points * (finer.shape[1] / bgr.shape[1]))

    def ocr(self, data: bytes) -> list[str]:
        """The lines of text."""
        scale = SHORT_SIDE / min(_size(data))
        bgr = _decode(data, 2 * scale)
        width, height = (round(edge * scale / 32) * 32 for edge in _size(data))
        boxes = self.find_text(cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA))
        if not len(boxes):
            return []
        bgr = _refine(data, bgr, LINE_HEIGHT / boxes[:, 3].min() * width / bgr.shape[1])
        boxes *= np.divide(bgr.shape[1::-1], (width, height))[[0, 1, 0, 1]]
        return self.read([bgr[y : y + h, x : x + w] for x, y, w, h in boxes.astype(int)])

    def embed_photo(self, image: Image.Image) -> Float:
        """(D,) of a photo in the size that CLIP takes."""
        pixels = np.asarray(image, np.float32) * (1 / (255 * self._std)) - self._mean / self._std
        model, values = self._visual / "model.onnx", np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        return np.asarray(self.run(model, values)[0][0])

    def find_faces(self, bgr: Pixels, interpolation: int = cv2.INTER_AREA) -> Float:
        """(N, 5, 2) points of the faces, in pixels of bgr."""
        scale = _DETECTED / max(bgr.shape)
        height, width = (int(edge * scale) for edge in bgr.shape[:2])
        canvas = np.zeros((_DETECTED, _DETECTED, 3), np.uint8)
        canvas[:height, :width] = cv2.resize(bgr, (width, height), interpolation=interpolation)
        return _points(self.run(self._detector, _blob([canvas], 128))) / np.float32(scale)

    def embed_faces(self, bgr: Pixels, points: Float) -> Float:
        """points: (N, 5, 2) in pixels of bgr. Returns (N, 512) of any length."""
        crops = [cv2.warpAffine(bgr, _crop(five), (112, 112)) for five in points]
        return self.run(self._recogniser, _blob(crops))[0] if crops else np.empty((0, 512), np.float32)

    def find_text(self, bgr: NDArray[Any]) -> Float:
        """(N, 4) x, y, width, height of the lines from top to bottom, in pixels of bgr, whose sides 32 divides."""
        probability = self.run(OCR_MODELS["detection"], _blob([bgr], swap=False))[0][0, 0]
        mask = cv2.dilate((probability > 0.3).astype(np.uint8), np.ones((2, 2), np.uint8))
        boxes = []
        for contour in cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
            x, y, w, h = cv2.boundingRect(contour)
            if min(w, h) > 3 and probability[y : y + h, x : x + w].mean() > 0.5:
                grown = 1.6 * w * h / (w + h)
                boxes.append((max(x - grown / 2, 0), max(y - grown / 2, 0), w + grown, h + grown))
        return np.array(sorted(boxes, key=lambda box: box[1]), np.float32)

    def read(self, lines: Sequence[NDArray[Any]]) -> list[str]:
        """The text of each line (H, W, 3), six lines of about the same length at once."""
        model = OCR_MODELS["recognition"]
        resized = [cv2.resize(line, (round(LINE_HEIGHT * line.shape[1] / len(line)), LINE_HEIGHT)) for line in lines]
        order, texts = sorted(range(len(lines)), key=lambda i: resized[i].shape[1]), [""] * len(lines)
        for chosen in (order[start : start + 6] for start in range(0, len(order), 6)):
            batch = np.full((len(chosen), LINE_HEIGHT, max(resized[chosen[-1]].shape[1], 320), 3), 127, np.uint8)
            for row, i in zip(batch, chosen, strict=True):
                row[:, : resized[i].shape[1]] = resized[i]
            for i, best in zip(chosen, self.run(model, _blob(batch, swap=False))[0].argmax(axis=2), strict=True):
                texts[i] = "".join(_characters(model)[c] for c in best[np.flatnonzero(np.diff(best, prepend=0))])
        return [text for text in texts if text.strip()]

    def run(self, model: Path, values: NDArray[Any]) -> list[Float]:
        """The outputs for the one input. The model is loaded when it is first needed."""
        session = _open(model, self._threads)
        return list(session.run(None, {session.get_inputs()[0].name: values}))


@cache
def _open(model: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@cache
def _characters(model: Path) -> list[str]:
    return ["", *_open(model, 1).get_modelmeta().custom_metadata_map["character"].split("\n"), " "]


def clip_photo(data: bytes, side: int = 224) -> Image.Image:
    """The middle of the photo as CLIP wants it, by Pillow's bicubic filter: all that it costs but the model."""
    image: Image.Image = Image.open(BytesIO(data))
    if image.format == "JPEG":
        larger = 2 * side / min(image.size)
        image.draft("RGB", (int(image.width * larger), int(image.height * larger)))
    else:
        image = Image.fromarray(_decode(data, 1, cv2.IMREAD_COLOR_RGB))
    short = min(image.size)
    left, top = ((edge - short) / 2 for edge in image.size)
    return image.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + short, top + short), 2.0)


def _size(data: bytes) -> tuple[int, int]:
    """Width and height by the header."""
    return Image.open(BytesIO(data)).size


def _decode(data: bytes, wanted: float, flags: int = cv2.IMREAD_COLOR) -> Pixels:
    """(H, W, 3) with at least `wanted` of the photo's pixels a side: libjpeg drops the others while it decodes."""
    if data.startswith(b"\xff\xd8"):
        flags = next((getattr(cv2, f"IMREAD_REDUCED_COLOR_{n}") for n in (8, 4, 2) if 1 / n >= wanted), flags)
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), flags), np.uint8)


def _refine(data: bytes, bgr: Pixels, larger: float) -> Pixels:
    """The photo with `larger` times the pixels of bgr a side, as far as it has them."""
    width = _size(data)[0]
    return _decode(data, larger * bgr.shape[1] / width) if larger > 1 and bgr.shape[1] < width else bgr


def _points(outputs: Sequence[Float], min_score: float = 0.65) -> Float:
    """(N, 5, 2) points of the faces by SCRFD's outputs, in pixels of its input."""
    found = []
    for level, stride in enumerate((8, 16, 32)):
        score, box, points = outputs[level::3]
        sure = np.flatnonzero(score >= min_score)
        centre = np.stack(np.divmod(sure // 2, _DETECTED // stride)[::-1], axis=1) * stride
        corner, far = centre - box[sure, :2] * stride, (box[sure, :2] + box[sure, 2:]) * stride
        found.append(np.hstack([score.reshape(-1, 1)[sure], corner, far, np.tile(centre, 5) + points[sure] * stride]))
    faces = np.concatenate(found).astype(np.float32)
    kept = cv2.dnn.NMSBoxes(faces[:, 1:5].tolist(), faces[:, 0].tolist(), min_score, 0.4)
    return faces[np.asarray(kept, int).ravel(), 5:].reshape(-1, 5, 2)


def _crop(points: Float) -> NDArray[np.float64]:
    """(2, 3) matrix that brings a face's points onto ArcFace's crop."""
    return np.asarray(cv2.estimateAffinePartial2D(points, ARCFACE, method=cv2.LMEDS)[0], np.float64)


def _blob(pictures: Sequence[Any] | Pixels, unit: float = 127.5, swap: bool = True) -> Float:
    """(N, 3, H, W) from about -1 to 1. swap: to RGB; PP-OCR wants BGR."""
    return np.asarray(cv2.dnn.blobFromImages(list(pictures), 1 / unit, mean=(127.5,) * 3, swapRB=swap), np.float32)


def combinations() -> list[tuple[int, int]]:
    """Threads of one inference and photos at once: what could use all cores best."""
    fit = max(CORES // THREADS, 1)
    wanted = [(1, CORES), (1, CORES + 1), (1, 2 * CORES), *((THREADS, fit + more) for more in range(3))]
    return list(dict.fromkeys(wanted))


def run_at_once(task: Callable[[bytes], object], photos: Sequence[bytes], workers: int) -> None:
    """All the photos by so many workers."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(task, photos))
