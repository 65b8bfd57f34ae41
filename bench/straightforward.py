# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m bench.straightforward PORT`: the API written in the obvious way, for comparison.

It works as the first version of this project did: OpenCV decodes the whole photo on the event loop to check it, Pillow
decodes it again, and its full size is converted to BGR, resized and cropped; RapidOCR reads text.
"""

import asyncio
import os
import sys
from functools import cache
from io import BytesIO
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

from bench.floor import SHORT_SIDE, Float, Floor, Pixels

_THREADS = 2
_models = Floor(os.environ, _THREADS)
_OCR_OPTIONS: dict[str, object] = {
    "Global.log_level": "critical",
    "Global.use_cls": False,
    "Global.max_side_len": 2**16,  # lines are cut from the whole photo
    "Det.limit_type": "max",
    "Det.limit_side_len": SHORT_SIDE * 4 // 3,  # of photos in 4:3
    "Rec.rec_batch_num": 1,
    "EngineConfig.onnxruntime.intra_op_num_threads": _THREADS,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
}

MultiPartParser.spool_max_size = 2**26  # keeps photos in memory


def read_text(data: bytes, _: Pixels) -> object:
    return {"texts": _ocr()(_bgr(Image.open(BytesIO(data)))).txts or ()}


def embed_photo(data: bytes, _: Pixels, side: int = 224) -> object:
    image = Image.open(BytesIO(data))
    width, height = (int(edge / min(image.size) * side) for edge in image.size)
    left, top = int((width - side) / 2), int((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return _strings(_models.embed_photo(resized.crop((left, top, left + side, top + side))))


def embed_text(text: str) -> object:
    ids = np.array([_tokenizer().encode(text).ids], np.int32)
    return _strings(_models.run(_models.clip / "textual/model.onnx", ids)[0][0])


def find_faces(_: bytes, pixels: Pixels) -> object:
    bgr = _bgr(Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)))
    points = _models.find_faces(bgr, cv2.INTER_LINEAR)
    return [{"embedding": embedding} for embedding in _models.embed_faces(bgr, points).tolist()]


def _strings(vector: Float) -> list[str]:
    return [f"{value:.16f}" for value in vector.tolist()]


def _bgr(image: Image.Image) -> Pixels:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(_models.clip / "textual/tokenizer.json"))
    tokenizer.enable_truncation(77)
    tokenizer.enable_padding(length=77, pad_id=tokenizer.token_to_id("<pad>"))
    return tokenizer


@cache
def _ocr() -> Any:
    from rapidocr import RapidOCR  # late, because it would slow down the start

    return RapidOCR(params=_OCR_OPTIONS)


async def answer(request: Request) -> JSONResponse:
    path = request.url.path
    if path == "/check":
        return JSONResponse({"result": "pass"})
    if path == "/clip/txt":
        return JSONResponse({"result": await asyncio.to_thread(embed_text, (await request.json())["text"])})
    async with request.form() as form:
        data = await cast(UploadFile, form["file"]).read()
    pixels = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)
    return JSONResponse({"result": await asyncio.to_thread(_PHOTO_TASKS[path], data, pixels)})


_PHOTO_TASKS = {"/ocr": read_text, "/clip/img": embed_photo, "/represent": find_faces}

if __name__ == "__main__":
    routes = [Route(path, answer, methods=["POST"]) for path in ("/check", "/clip/txt", *_PHOTO_TASKS)]
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), log_level="warning", timeout_keep_alive=75)
