# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: the service, which ends its process when it has been idle."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, File, Form, HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf, NoSuchFile
from PIL import Image

from .config import Preload, log, settings
from .models.base import InferenceModel
from .models.cache import ModelCache
from .schemas import ModelTask, ModelType

T = TypeVar("T")
Entry = tuple[ModelTask, ModelType, str, dict[str, Any]]

model_cache = ModelCache()
thread_pool: ThreadPoolExecutor | None = None
loading = threading.Lock()
active_requests = 0
last_called: float | None = None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    global thread_pool
    thread_pool = ThreadPoolExecutor(settings.request_threads) if settings.request_threads > 0 else None
    watched = settings.model_ttl > 0 and settings.model_ttl_poll_s > 0
    watch = asyncio.create_task(idle_shutdown_task()) if watched else None
    try:
        if settings.preload is not None:
            await preload_models(settings.preload)
        yield
    finally:
        if watch is not None:
            watch.cancel()
        if thread_pool is not None:
            thread_pool.shutdown()


app = FastAPI(lifespan=lifespan)


async def run(func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """func(*args, **kwargs) in the pool."""
    if thread_pool is None:
        return func(*args, **kwargs)
    return await asyncio.wrap_future(thread_pool.submit(func, *args, **kwargs))


def _open(model: InferenceModel) -> None:
    if model.load_attempts > 1:  # once and again, as upstream has it: refused until the process starts afresh
        raise HTTPException(500, f"{model.model_name} could not be loaded twice")
    with loading:
        model.load()


async def load(model: InferenceModel) -> InferenceModel:
    """The model with its session open. What cannot be read is removed and tried once more."""
    if model.loaded:
        return model
    try:
        await run(_open, model)
    except (OSError, InvalidProtobuf, NoSuchFile) as error:
        log.warning(f"Clearing the cache of '{model.model_name}': {error}")
        model.clear_cache()
        await run(_open, model)
    return model


async def preload_models(preload: Preload) -> None:
    for task, parts in (
        (ModelTask.SEARCH, preload.clip),
        (ModelTask.FACIAL_RECOGNITION, preload.facial_recognition),
        (ModelTask.OCR, preload.ocr),
    ):
        for type_, names in parts.model_dump(exclude_none=True).items():
            for name in names.split(","):
                await load(await model_cache.get(name.strip(), ModelType(type_), task))


async def run_inference(payload: Image.Image | str, entries: list[Entry]) -> dict[str, Any]:
    """What the last type of each task says, and the picture's size."""
    outputs: dict[tuple[ModelTask, ModelType], Any] = {}
    response: dict[str, Any] = {}
    models = [await model_cache.get(name, type_, task, settings.model_ttl) for task, type_, name, _ in entries]
    for (task, type_, _, options), model in sorted(zip(entries, models, strict=True), key=lambda e: len(e[1].depends)):
        missing = [needed for needed in model.depends if (task, needed) not in outputs]
        if missing:
            raise HTTPException(400, f"{task} of type {type_} depends on {missing}")
        inputs = [outputs[task, needed] for needed in model.depends]
        await load(model)
        outputs[task, type_] = response[task] = await run(model.predict, payload, *inputs, **options)
    if isinstance(payload, Image.Image):
        response |= {"imageHeight": payload.height, "imageWidth": payload.width}
    return response


def update_state() -> Iterator[None]:
    """A dependency of the routes whose calls keep the process from ending."""
    global active_requests, last_called
    active_requests, last_called = active_requests + 1, time.time()
    try:
        yield
    finally:
        active_requests -= 1


def _idle() -> bool:
    if last_called is None or active_requests or loading.locked():
        return False
    return last_called + settings.model_ttl < time.time()


async def idle_shutdown_task() -> None:
    while not _idle():
        await asyncio.sleep(settings.model_ttl_poll_s)
    log.info("Idle: this process ends, and gunicorn starts another")
    os.kill(os.getpid(), signal.SIGINT)


def get_entries(entries: Annotated[str, Form()]) -> list[Entry]:
    try:
        return [
            (ModelTask(task), ModelType(type_), entry["modelName"], entry.get("options", {}))
            for task, types in json.loads(entries).items()
            for type_, entry in types.items()
        ]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise HTTPException(422, "entries: not of the form {task: {type: {modelName, options}}}") from None


@app.get("/")
async def root() -> JSONResponse:
    return JSONResponse({"message": "Immich ML"})


@app.get("/ping")
def ping() -> PlainTextResponse:
    return PlainTextResponse("pong")


@app.post("/predict", dependencies=[Depends(update_state)])
async def predict(
    entries: Annotated[list[Entry], Depends(get_entries)],
    image: Annotated[bytes | None, File()] = None,
    text: Annotated[str | None, Form()] = None,
) -> JSONResponse:
    if image is None and text is None:
        raise HTTPException(400, "neither image nor text")
    payload = text if image is None else await run(lambda: Image.open(BytesIO(image)).convert("RGB"))
    return JSONResponse(await run_inference(payload, entries))
