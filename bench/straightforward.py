# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m bench.straightforward PORT`: the API in the way that comes to mind first, for comparison.

As the first version of this project worked: the photo is decoded whole by OpenCV on the event loop to look at it, whole
again by Pillow, converted whole to the other order of colours, and resized and cut from full size; RapidOCR reads text.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from tokenizers import Tokenizer

from bench.floor import SHORT_SIDE, Floor, Pixels

_THREADS = 2
_CACHE = Path(os.environ["MACHINE_LEARNING_CACHE_FOLDER"])
_CLIP = _CACHE / "clip" / os.environ["CLIP_VISUAL_MODEL_NAME"]
_models = Floor(_CLIP, _CACHE / "facial-recognition" / os.environ["FACE_DETECTION_MODEL_NAME"], _THREADS)
_pool = ThreadPoolExecutor(os.cpu_count())

MultiPartParser.spool_max_size = 2**26  # a photo is not written to the disk


def read_text(data: bytes, _: Pixels) -> object:
    image = Image.open(BytesIO(data))
    width, height = (round(edge * SHORT_SIDE / min(image.size) / 32) * 32 for edge in image.size)
    boxes = _engine("det")(_bgr(image.resize((width, height), Image.Resampling.LANCZOS))).boxes
    bgr, lines = _bgr(image), []
    for quad in np.zeros((0, 4, 2)) if boxes is None else boxes * np.divide(image.size, (width, height)):
        w, h = (int(np.linalg.norm(quad[i] - quad[0])) for i in (1, 3))
        move = cv2.getPerspectiveTransform(quad.astype(np.float32), np.array([(0, 0), (w, 0), (w, h), (0, h)], "f"))
        line = cv2.warpPerspective(bgr, move, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        lines.append(_engine("rec")(line).txts[0])
    return {"texts": lines}


def embed_photo(data: bytes, _: Pixels, side: int = 224) -> object:
    image = Image.open(BytesIO(data))
    width, height = (int(edge / min(image.size) * side) for edge in image.size)
    left, top = int((width - side) / 2), int((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    vector = _models.embed_photo(resized.crop((left, top, left + side, top + side)))
    return [f"{value:.16f}" for value in vector.tolist()]


def embed_text(text: str) -> object:
    tokenizer, folder = _tokenizer(), _CLIP / "textual"
    pad = tokenizer.token_to_id(json.loads((folder / "tokenizer_config.json").read_text())["pad_token"])
    ids = (tokenizer.encode(text).ids + [pad] * 77)[:77]
    vector = _models.run(folder / "model.onnx", np.array([ids], np.int32))[0][0]
    return [f"{value:.16f}" for value in vector.tolist()]


def find_faces(_: bytes, pixels: Pixels) -> object:
    bgr = _bgr(Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)))
    points = _models.find_faces(bgr, cv2.INTER_LINEAR)
    return [{"embedding": embedding} for embedding in _models.embed_faces(bgr, points).tolist()]


def _bgr(image: Image.Image) -> Pixels:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(_CLIP / "textual" / "tokenizer.json"))


@cache
def _engine(step: str) -> Any:
    """RapidOCR for this step alone, "det" or "rec"."""
    from rapidocr import RapidOCR  # late, as it would slow down the start

    params: dict[str, Any] = {f"Global.use_{each}": each == step for each in ("det", "cls", "rec")}
    threads = {"intra_op_num_threads": _THREADS, "inter_op_num_threads": 1}
    params |= {f"EngineConfig.onnxruntime.{name}": number for name, number in threads.items()}
    return RapidOCR(params={**params, "Global.log_level": "critical"})


def _answer(work: Callable[..., object]) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def answer(request: Request) -> JSONResponse:
        if work is embed_text:
            given = [(await request.json())["text"]]
        else:
            async with request.form() as form:
                data = await cast(UploadFile, form["file"]).read()
            given = [data, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)]
        return JSONResponse({"result": await asyncio.get_running_loop().run_in_executor(_pool, work, *given)})

    return answer


async def check(_: Request) -> JSONResponse:
    return JSONResponse({"result": "pass"})


WORK: dict[str, Callable[..., object]] = {
    "/ocr": read_text,
    "/clip/img": embed_photo,
    "/clip/txt": embed_text,
    "/represent": find_faces,
}

if __name__ == "__main__":
    routes = [Route(path, _answer(work), methods=["POST"]) for path, work in WORK.items()]
    app = Starlette(routes=[*routes, Route("/check", check, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", timeout_keep_alive=75)
