# SPDX-License-Identifier: AGPL-3.0-only
"""Answers /predict for CLIP images, preloads models by setting, and exits when idle."""

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

log = logging.getLogger("ml.log")
PREFIX = "MACHINE_LEARNING_"
CACHE = Path(os.environ[f"{PREFIX}CACHE_FOLDER"])
IDLE_SECONDS = float(os.environ.get(f"{PREFIX}MODEL_TTL", "300"))
POLL_SECONDS = float(os.environ.get(f"{PREFIX}MODEL_TTL_POLL_S", "10"))
PRELOADED = {"OCR__DETECTION": "ocr/{}/detection", "CLIP__VISUAL": "clip/{}/visual"}

sessions: dict[str, onnxruntime.InferenceSession] = {}
last_called: float | None = None
memory = b"1" * (50 << 20)  # like the libraries that upstream imports


def open_model(path: str) -> onnxruntime.InferenceSession:
    if path not in sessions:
        log.warning("loading %s, attempt 1", path)
        sessions[path] = onnxruntime.InferenceSession(str(CACHE / path / "model.onnx"))
    return sessions[path]


async def end_when_idle() -> None:
    while last_called is None or last_called + IDLE_SECONDS > time.monotonic():
        await asyncio.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGINT)


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    for variable, path in PRELOADED.items():
        if name := os.environ.get(f"{PREFIX}PRELOAD__{variable}"):
            open_model(path.format(name))
    watch = asyncio.create_task(end_when_idle())
    yield
    watch.cancel()


async def predict(request: Request) -> JSONResponse:
    global last_called
    last_called = time.monotonic()
    form = await request.form()
    path = f"clip/{json.loads(form['entries'])['clip']['visual']['modelName']}/visual"
    about = json.loads((CACHE / path / "preprocess_cfg.json").read_bytes())
    side = about["size"] if isinstance(about["size"], int) else about["size"][0]
    photo = Image.open(io.BytesIO(await form["image"].read())).convert("RGB")
    square = ImageOps.fit(photo, (side, side), Image.Resampling.BICUBIC)
    pixels = (np.asarray(square, np.float32) / 255 - about["mean"]) / about["std"]
    (vector,) = open_model(path).run(None, {"image": pixels.transpose(2, 0, 1)[None].astype(np.float32)})
    return JSONResponse({"clip": json.dumps(vector[0].tolist())})


def ping(_: Request) -> PlainTextResponse:
    return PlainTextResponse("pong")


routes = [Route("/ping", ping), Route("/predict", predict, methods=["POST"])]
app = Starlette(routes=routes, lifespan=lifespan)
