# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's names of v3.3: the service, which ends its process when it has been idle."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Annotated, Any

from fastapi import Depends, FastAPI, File, Form, HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse
from PIL import Image

from . import pipeline
from .config import log, settings
from .pipeline import Models

model_cache = Models()
active_requests = 0
last_called: float | None = None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    watched = settings.model_ttl > 0 and settings.model_ttl_poll_s > 0
    watch = asyncio.create_task(idle_shutdown_task()) if watched else None
    try:
        yield
    finally:
        if watch is not None:
            watch.cancel()
        model_cache.clear()


app = FastAPI(lifespan=lifespan)


async def update_state() -> AsyncIterator[None]:
    """A dependency of the routes whose calls keep the process from ending."""
    global active_requests, last_called
    active_requests, last_called = active_requests + 1, time.time()
    try:
        yield
    finally:
        active_requests -= 1


async def idle_shutdown_task() -> None:
    while last_called is None or active_requests or last_called + settings.model_ttl >= time.time():
        await asyncio.sleep(settings.model_ttl_poll_s)
    log.info("Idle: this process ends, and gunicorn starts another")
    os.kill(os.getpid(), signal.SIGINT)


@app.get("/")
async def root() -> JSONResponse:
    return JSONResponse({"message": "Immich ML"})


@app.get("/ping")
def ping() -> PlainTextResponse:
    return PlainTextResponse("pong")


@app.post("/predict", dependencies=[Depends(update_state)])
async def predict(
    entries: Annotated[str, Form()],
    image: Annotated[bytes | None, File()] = None,
    text: Annotated[str | None, Form()] = None,
) -> JSONResponse:
    if image is None and text is None:
        raise HTTPException(400, "neither image nor text")
    payload: Any = text if image is None else Image.open(BytesIO(image)).convert("RGB")
    try:
        return JSONResponse(await pipeline.run(model_cache, payload, json.loads(entries)))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise HTTPException(422, f"entries: {error}") from None
