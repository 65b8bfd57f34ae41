# SPDX-License-Identifier: AGPL-3.0-only
"""Measures how fast each task is on this machine, with a photo that it makes, and suggests what makes it faster."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..machine.cpu import cores
from ..models.loader import ModelUnavailable
from ..models.sources import file_in_wheel
from . import Engine
from .trace import Trace

_SIZE = (4000, 3000)
_ALONE_SECONDS, _TOGETHER_SECONDS, _DAY_SECONDS = 3.0, 5.0, 86_400

Verb = Callable[[bytes, Trace], Awaitable[object]]


@dataclass(frozen=True)
class Measured:
    """The speed of one task. milliseconds: for one photo at a time. per_day: photos, with as many at a time as the
    service processes. problem: why it was not measured."""

    task: str
    device: str = ""
    milliseconds: float | None = None
    per_day: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Hint:
    """A suggestion. code: names it, for a translation."""

    code: str
    text: str


@dataclass(frozen=True)
class Report:
    """The results. device: what the models ran on."""

    device: str
    megapixels: float
    tasks: list[Measured]
    hints: list[Hint]


def make_photo() -> bytes:
    """A JPEG of 12 megapixels with some lines of text; it takes as long to decode as a phone's photo."""
    height, width = _SIZE[1] // 4, _SIZE[0] // 4
    grain = np.random.default_rng(0).normal((148, 128, 108), 14, (height, width, 3)).astype(np.uint8)
    image = Image.fromarray(grain).resize(_SIZE, Image.Resampling.BILINEAR)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(110)
    for row in range(6):
        draw.text((300, 300 + 400 * row), f"Line {row} of a photo, {1234 * (row + 1)}", fill="black", font=font)
    data = BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


async def measure(engine: Engine) -> Report:
    """Measures all tasks, in half a minute. Does not download missing models; their tasks have a problem instead."""
    photo, tasks = await asyncio.to_thread(make_photo), engine.settings.tasks
    verbs: dict[str, Verb] = {"ocr": engine.read_text, "clip": engine.embed_photo, "faces": engine.find_faces}
    found = [await _measure(engine, task, partial(verb, photo)) for task, verb in verbs.items() if task in tasks]
    device = await asyncio.to_thread(engine.devices.describe)
    return Report(device, _SIZE[0] * _SIZE[1] / 1e6, found, hints(engine))


async def _measure(engine: Engine, task: str, look: Callable[[Trace], Awaitable[object]]) -> Measured:
    keys = [key for role, key in engine.networks.by_role().items() if role.task == task]
    refs, cache = [key.ref for key in keys if key.ref.type != "textual"], engine.settings.cache_folder
    if absent := [str(ref) for ref in refs if ref.missing(cache) and not file_in_wheel(ref)]:
        return Measured(task, problem=f"{', '.join(absent)} is missing: `mt-photos-ml models pull` downloads it")

    try:
        await look(Trace())  # loads the models
        alone = await _rate(look, _ALONE_SECONDS, 1)
        together = await _rate(look, _TOGETHER_SECONDS, engine.settings.request_threads)
    except ModelUnavailable as error:
        return Measured(task, problem=str(error))
    return Measured(task, engine.runs_on().get(task, ""), round(1000 / alone, 1), round(together * _DAY_SECONDS))


async def _rate(look: Callable[[Trace], Awaitable[object]], seconds: float, at_once: int) -> float:
    """Photos per second, with `at_once` at a time."""
    started = time.monotonic()

    async def client() -> int:
        done = 0
        while not done or time.monotonic() < started + seconds:
            await look(Trace())
            done += 1
        return done

    done = sum(await asyncio.gather(*(client() for _ in range(at_once))))
    return done / (time.monotonic() - started)


def hints(engine: Engine) -> list[Hint]:
    """Suggestions that make the service faster on this machine."""
    settings, found = engine.settings, [Hint("card", f"a card is not used: {said}") for said in engine.devices.refused]
    if engine.devices.is_accelerated:
        return found
    if plain := settings.tasks & {"clip", "faces"} - settings.int8_tasks:
        how = "run `mt-photos-ml models optimize NAME PHOTOS`, then set INT8_TASKS="
        found.append(Hint("int8", f"int8 variants take about half the time: {how}{','.join(sorted(plain))}"))
    if max(settings.request_threads, settings.model_intra_op_threads) > cores():
        names = "MACHINE_LEARNING_REQUEST_THREADS and MACHINE_LEARNING_MODEL_INTRA_OP_THREADS"
        found.append(Hint("threads", f"more threads than cores ({cores()}): leave {names} unset"))
    if not settings.prepare_models:
        found.append(Hint("prepare", "models load faster and take less memory with PREPARE_MODELS=true"))
    return found
