# SPDX-License-Identifier: AGPL-3.0-only
"""The floor: what a photo costs at least, with bare onnxruntime and the fastest decode that keeps 50 dB.

It does only the work that the answer needs: no HTTP, no queue, no EXIF, no bad files. It shares no code with the
service, so that a slower service does not make the floor slower.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import distribution
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from demo.pictures import ARCFACE

Float = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Box = tuple[Sequence[float], Sequence[float], float]  # centre, extent, angle
_OCR = Path(str(distribution("rapidocr").locate_file("rapidocr/models")))
OCR_MODELS = {kind: _OCR / f"PP-OCRv6_{kind[:3]}_small.onnx" for kind in ("detection", "recognition")}
"""PP-OCRv6_small in RapidOCR's wheel, by kind."""
CORES = len(os.sched_getaffinity(0))
THREADS = min(CORES, 4)  # of one inference, as the service chooses them
COMBINATIONS = [(1, CORES), (1, CORES + 1), (1, 2 * CORES), *((THREADS, CORES // THREADS + n) for n in range(3))]
"""Threads of one inference and photos at once: the candidates for the fastest use of all cores."""
DETECTED, SHORT_SIDE, LINE_HEIGHT = 640, 736, 48  # pixels: SCRFD's input, short side of OCR's, a text line


class Floor:
    """The tasks by route, one photo at a time. settings: name the models. threads: of one inference."""

    def __init__(self, settings: Mapping[str, str], threads: int = THREADS) -> None:
        cache, self._threads = Path(settings["MACHINE_LEARNING_CACHE_FOLDER"]), threads
        self._faces = cache / "facial-recognition" / settings["FACE_DETECTION_MODEL_NAME"]
        self.clip = cache / "clip" / settings["CLIP_VISUAL_MODEL_NAME"]
        config = json.loads((self.clip / "visual/preprocess_cfg.json").read_text())
        self._mean, self._std = (np.array(config[key], np.float32) for key in ("mean", "std"))
        self.tasks: dict[str, Callable[[bytes], Float | list[str]]] = {
            "/clip/img": lambda data: self.embed_photo(clip_photo(data)),
            "/represent": self.faces,
            "/ocr": self.ocr,
        }

    def faces(self, data: bytes) -> Float:
        """(N, 512) vectors of the faces."""
        bgr = _decode(data, DETECTED)  # enough for crops of faces from a ninth of the photo's height
        return self.embed_faces(bgr, self.find_faces(bgr))

    def ocr(self, data: bytes) -> list[str]:
        """The lines of text from top to bottom."""
        bgr = _decode(data, 2 * SHORT_SIDE)  # enough for lines from LINE_HEIGHT / 2 in the detector's input
        scale = SHORT_SIDE / min(bgr.shape[:2])
        width, height = (round(edge * scale / 32) * 32 for edge in bgr.shape[1::-1])
        small = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA)
        boxes = find_lines(self.run(OCR_MODELS["detection"], _blob([small], swap=False))[0][0, 0])
        return self._read([cut(bgr, box, bgr.shape[1] / width) for box in boxes])

    def embed_photo(self, image: Image.Image) -> Float:
        """(D,) vector of a photo that has the size of CLIP's input."""
        pixels = np.asarray(image, np.float32) * (1 / (255 * self._std)) - self._mean / self._std
        values = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        return np.asarray(self.run(self.clip / "visual/model.onnx", values)[0][0])

    def find_faces(self, bgr: Pixels, interpolation: int = cv2.INTER_AREA) -> Float:
        """(N, 5, 2) points of the faces, in pixels of bgr."""
        scale = DETECTED / max(bgr.shape)
        height, width = (int(edge * scale) for edge in bgr.shape[:2])
        canvas = np.zeros((DETECTED, DETECTED, 3), np.uint8)
        canvas[:height, :width] = cv2.resize(bgr, (width, height), interpolation=interpolation)
        return _points(self.run(self._faces / "detection/model.onnx", _blob([canvas], 128))) / np.float32(scale)

    def embed_faces(self, bgr: Pixels, points: Float) -> Float:
        """points: (N, 5, 2) in pixels of bgr, of at least one face. Returns (N, 512) vectors, not normalised."""
        moves = [cv2.estimateAffinePartial2D(five, ARCFACE, method=cv2.LMEDS)[0] for five in points]
        crops = [cv2.warpAffine(bgr, move, (112, 112)) for move in moves]
        return self.run(self._faces / "recognition/model.onnx", _blob(crops))[0]

    def _read(self, lines: Sequence[Pixels]) -> list[str]:
        """The text of each line (LINE_HEIGHT, W, 3), in batches of six lines of similar length."""
        model, texts = OCR_MODELS["recognition"], [""] * len(lines)
        order = sorted(range(len(lines)), key=lambda i: lines[i].shape[1])
        for chosen in (order[start : start + 6] for start in range(0, len(order), 6)):
            batch = np.full((len(chosen), LINE_HEIGHT, max(lines[chosen[-1]].shape[1], 320), 3), 127, np.uint8)
            for row, i in zip(batch, chosen, strict=True):
                row[:, : lines[i].shape[1]] = lines[i]
            for i, best in zip(chosen, self.run(model, _blob(batch, swap=False))[0].argmax(axis=2), strict=True):
                texts[i] = "".join(_characters(model)[c] for c in best[np.flatnonzero(np.diff(best, prepend=0))])
        return [text for text in texts if text.strip()]

    def run(self, model: Path, values: NDArray[Any]) -> list[Float]:
        """The outputs for the one input. Loads the model at its first use."""
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
    """CLIP's input from the middle of the photo, by Pillow's bicubic filter: all work but the model's."""
    bgr = Image.fromarray(_decode(data, 2 * side))
    short = min(bgr.size)
    left, top = ((edge - short) / 2 for edge in bgr.size)
    small = bgr.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + short, top + short), 2.0)
    return Image.merge("RGB", small.split()[::-1])


def _decode(data: bytes, wanted: int) -> Pixels:
    """(H, W, 3) BGR. libjpeg decodes at a fraction if the shorter side keeps `wanted` pixels."""
    flags = cv2.IMREAD_COLOR
    if data.startswith(b"\xff\xd8"):
        short = min(Image.open(BytesIO(data)).size)
        flags = next((getattr(cv2, f"IMREAD_REDUCED_COLOR_{n}") for n in (8, 4, 2) if short / n >= wanted), flags)
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), flags), np.uint8)


def _points(outputs: Sequence[Float], min_score: float = 0.65) -> Float:
    """(N, 5, 2) points of the faces from SCRFD's outputs, in pixels of its input."""
    found = []
    for level, stride in enumerate((8, 16, 32)):
        score, box, points = outputs[level::3]
        sure = np.flatnonzero(score >= min_score)
        centre = np.stack(np.divmod(sure // 2, DETECTED // stride)[::-1], axis=1) * stride
        corner, far = centre - box[sure, :2] * stride, (box[sure, :2] + box[sure, 2:]) * stride
        found.append(np.hstack([score.reshape(-1, 1)[sure], corner, far, np.tile(centre, 5) + points[sure] * stride]))
    faces = np.concatenate(found).astype(np.float32)
    kept = cv2.dnn.NMSBoxes(faces[:, 1:5].tolist(), faces[:, 0].tolist(), min_score, 0.4)
    return faces[np.asarray(kept, int).ravel(), 5:].reshape(-1, 5, 2)


def find_lines(probability: Float) -> list[Box]:
    """The lines of text from top to bottom, including slanted ones, in pixels of DB's map (H, W)."""
    mask = cv2.dilate((probability > 0.3).astype(np.uint8), np.ones((2, 2), np.uint8))
    boxes: list[Box] = []
    for contour in cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0]:
        centre, (w, h), angle = cv2.minAreaRect(contour)
        x, y, across, down = cv2.boundingRect(contour)
        if min(w, h) >= 3 and cv2.mean(probability[y : y + down, x : x + across])[0] >= 0.5:
            grown, angle = 1.6 * w * h / (w + h), angle - 90 * (w < h)
            boxes.append((centre, (max(w, h) + grown, min(w, h) + grown), (angle + 90) % 180 - 90))
    return sorted(boxes, key=lambda box: box[0][1])


def cut(bgr: Pixels, box: Box, scale: float) -> Pixels:
    """(LINE_HEIGHT, W, 3): the box's line, upright. scale: pixels of bgr to one of the box's."""
    (x, y), (w, h), angle = box
    width = max(round(LINE_HEIGHT * w / h), 1)
    move = cv2.getRotationMatrix2D((x * scale, y * scale), angle, LINE_HEIGHT / (h * scale))
    move[:, 2] += np.array([width / 2 - x * scale, LINE_HEIGHT / 2 - y * scale])
    return np.asarray(cv2.warpAffine(bgr, move, (width, LINE_HEIGHT), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _blob(pictures: Sequence[Any] | Pixels, unit: float = 127.5, swap: bool = True) -> Float:
    """(N, 3, H, W) from about -1 to 1. swap: to RGB; PP-OCR wants BGR."""
    return np.asarray(cv2.dnn.blobFromImages(list(pictures), 1 / unit, mean=(127.5,) * 3, swapRB=swap), np.float32)
