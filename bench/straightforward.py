# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m bench.straightforward --port PORT`: the API in the way that comes to mind first, for comparison.

As the first version of this project worked: the photo is decoded whole by OpenCV on the event loop to look at it, whole
again by Pillow, converted whole to the other order of colours, and resized and cut from full size.
"""

import argparse
import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import onnxruntime as ort
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bench.floor import Float, arcface, open_session, scrfd
from mt_photos_ml.settings import load

_THREADS = 2
_THREADS_OF = {"intra": _THREADS, "inter": 1}
_SETTINGS = load()
_CLIP = _SETTINGS.cache_folder / "clip" / _SETTINGS.clip_visual_model_name
_FACES = _SETTINGS.cache_folder / "facial-recognition" / _SETTINGS.face_detection_model_name

T = TypeVar("T")

MultiPartParser.spool_max_size = 2**26  # a photo is not written to the disk

_pool = ThreadPoolExecutor(_SETTINGS.request_threads)
_lock = threading.Lock()
_loaded: dict[str, Any] = {}


def _once(name: str, make: Callable[[], Any]) -> Any:
    """What is loaded when it is first asked for."""
    with _lock:
        if name not in _loaded:
            _loaded[name] = make()
        return _loaded[name]


def _session(model: Path) -> ort.InferenceSession:
    session: ort.InferenceSession = _once(str(model), lambda: open_session(model, _THREADS))
    return session


async def _in_pool(work: Callable[..., T], *args: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(_pool, work, *args)


async def _uploaded(request: Request) -> tuple[bytes, NDArray[np.uint8]]:
    """The file, and its pixels (H, W, 3) in BGR."""
    async with request.form() as form:
        file = form["file"]
        assert isinstance(file, UploadFile)
        data = await file.read()
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None or max(pixels.shape) > 10_000:
        raise ValueError("the photo can't be used")
    return data, np.asarray(pixels, np.uint8)


def _decoded(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


async def clip_photo(request: Request) -> Response:
    data, _ = await _uploaded(request)
    vector = await _in_pool(_clip_vector, await _in_pool(_decoded, data))
    return JSONResponse({"result": [f"{value:.16f}" for value in vector.tolist()]})


def _clip_vector(image: Image.Image) -> Float:
    config = json.loads((_CLIP / "visual" / "preprocess_cfg.json").read_text())
    side, short = config["size"][0], min(image.size)
    width, height = int(image.width / short * side), int(image.height / short * side)
    left, top = int((width - side) / 2), int((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    pixels = (np.asarray(resized, np.float32) / 255 - np.array(config["mean"], np.float32)) / config["std"]
    session = _session(_CLIP / "visual" / "model.onnx")
    feed = {session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None].astype(np.float32)}
    return np.asarray(session.run(None, feed)[0][0], np.float32)


async def clip_text(request: Request) -> Response:
    vector = await _in_pool(_text_vector, (await request.json())["text"])
    return JSONResponse({"result": [f"{value:.16f}" for value in vector.tolist()]})


def _text_vector(text: str) -> Float:
    from tokenizers import Tokenizer

    tokenizer = _once("tokenizer", lambda: Tokenizer.from_file(str(_CLIP / "textual" / "tokenizer.json")))
    pad = json.loads((_CLIP / "textual" / "tokenizer_config.json").read_text())["pad_token"]
    ids = tokenizer.encode(text).ids[:77]
    ids += [tokenizer.token_to_id(pad)] * (77 - len(ids))
    session = _session(_CLIP / "textual" / "model.onnx")
    return np.asarray(session.run(None, {session.get_inputs()[0].name: np.array([ids], np.int32)})[0][0], np.float32)


async def represent(request: Request) -> Response:
    _, pixels = await _uploaded(request)
    image = Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    bgr = await _in_pool(_bgr, image)
    found, scale = await _in_pool(_detected, bgr)
    embeddings = await _in_pool(_embedded, bgr, found[:, 5:] * scale)
    faces = [
        {
            "embedding": embedding.tolist(),
            "facial_area": {"x": int(x1), "y": int(y1), "w": int(x2 - x1), "h": int(y2 - y1)},
            "face_confidence": float(score),
        }
        for (score, *_), (x1, y1, x2, y2), embedding in zip(found, found[:, 1:5] * scale, embeddings, strict=True)
    ]
    name = _SETTINGS.face_recognition_model_name
    return JSONResponse({"detector_backend": "insightface", "recognition_model": name, "result": faces})


def _bgr(image: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


def _detected(bgr: NDArray[np.uint8]) -> tuple[Float, float]:
    """Faces in pixels of the detector's input, and how many pixels of the photo one of those is."""
    scale = max(bgr.shape) / 640
    width, height = int(bgr.shape[1] / scale), int(bgr.shape[0] / scale)
    canvas = np.zeros((640, 640, 3), np.uint8)
    canvas[:height, :width] = cv2.resize(bgr, (width, height))
    session = _session(_FACES / "detection" / "model.onnx")
    blob = cv2.dnn.blobFromImage(canvas, 1 / 128, (640, 640), (127.5, 127.5, 127.5), swapRB=True)
    return scrfd(session.run(None, {session.get_inputs()[0].name: blob}), _SETTINGS.face_min_score), scale


def _embedded(bgr: NDArray[np.uint8], points: Float) -> Float:
    """points: (N, 10) in pixels of the photo. Returns (N, 512) at any length."""
    if not len(points):
        return np.empty((0, 512), np.float32)
    crops = [cv2.warpAffine(bgr, arcface(five), (112, 112)) for five in points.reshape(-1, 5, 2)]
    session = _session(_FACES / "recognition" / "model.onnx")
    blob = cv2.dnn.blobFromImages(crops, 1 / 127.5, (112, 112), (127.5, 127.5, 127.5), swapRB=True)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: blob})[0], np.float32)


async def ocr(request: Request) -> Response:
    data, _ = await _uploaded(request)
    image = await _in_pool(_decoded, data)
    quads = await _in_pool(_text_found, image)
    lines = await _in_pool(_text_read, image, quads)
    boxes = []
    for low, high in ((quad.min(axis=0), quad.max(axis=0)) for quad in quads):
        sides = (round(float(side), 2) for side in (*low, *(high - low)))
        boxes.append(dict(zip(("x", "y", "width", "height"), map(str, sides), strict=True)))
    texts, scores = [text for text, _ in lines], [f"{score:.2f}" for _, score in lines]
    return JSONResponse({"result": {"texts": texts, "scores": scores, "boxes": boxes}})


def _text_found(image: Image.Image) -> Float:
    """(N, 4, 2) corners of the lines."""
    scale = 736 / min(image.size)
    small = round(image.width * scale / 32) * 32, round(image.height * scale / 32) * 32
    found = _engine("det")(_bgr(image.resize(small, Image.Resampling.LANCZOS)))
    quads = np.empty((0, 4, 2)) if found.boxes is None else np.array(found.boxes)
    return np.asarray(quads * (image.width / small[0], image.height / small[1]), np.float32)


def _text_read(image: Image.Image, quads: Float) -> list[tuple[str, float]]:
    """Text and score of each line, cut from the whole photo."""
    bgr, lines = _bgr(image), []
    for quad in quads:
        width, height = (int(np.linalg.norm(quad[i] - quad[0])) for i in (1, 3))
        target = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
        move = cv2.getPerspectiveTransform(quad, target)
        crop = cv2.warpPerspective(bgr, move, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        read = _engine("rec")(crop)
        lines.append((read.txts[0], float(read.scores[0])))
    return lines


def _engine(step: str) -> Any:
    """RapidOCR for this step alone, "det" or "rec"."""

    def make() -> Any:
        from rapidocr import RapidOCR

        params: dict[str, Any] = {f"Global.use_{each}": each == step for each in ("det", "cls", "rec")}
        params |= {f"EngineConfig.onnxruntime.{kind}_op_num_threads": n for kind, n in _THREADS_OF.items()}
        return RapidOCR(params={**params, "Global.log_level": "critical"})

    return _once(step, make)


async def check(request: Request) -> Response:
    return JSONResponse({"result": "pass"})


ROUTES = {"/check": check, "/ocr": ocr, "/clip/img": clip_photo, "/clip/txt": clip_text, "/represent": represent}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    app = Starlette(routes=[Route(path, answer, methods=["POST"]) for path, answer in ROUTES.items()])
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port, log_level="warning", timeout_keep_alive=75)
