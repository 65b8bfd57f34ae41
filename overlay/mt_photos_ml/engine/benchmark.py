# SPDX-License-Identifier: AGPL-3.0-only
"""How fast this machine is: each task on a photo that is made here, for seconds, and what would make it faster."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..models.loader import ModelUnavailable
from ..models.sources import file_in_wheel
from ..photo import Photo
from ..tasks import clip, faces, ocr
from . import Engine, cores

_SIZE = (4000, 3000)
_ALONE, _TOGETHER = 3.0, 5.0  # seconds of each task
_DAY = 86_400

Work = Callable[[Photo], object]


@dataclass(frozen=True)
class Measured:
    """milliseconds: of a photo alone. per_day: photos, as many at a time as the service takes. problem: why not."""

    task: str
    milliseconds: float | None = None
    per_day: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Hint:
    """What would help. code: for who translates it."""

    code: str
    text: str


@dataclass(frozen=True)
class Report:
    """device: what the models ran on."""

    device: str
    megapixels: float
    tasks: list[Measured]
    hints: list[Hint]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def make_photo() -> bytes:
    """A JPEG of 12 megapixels with some lines of text on it, as much work to decode as one of a phone."""
    grain = np.random.default_rng(0).normal(0, 14, (_SIZE[1] // 4, _SIZE[0] // 4, 1)).astype(np.float32)
    slope = np.linspace(60, 190, _SIZE[0] // 4, dtype=np.float32)[None, :, None]
    tones = np.clip(slope + grain + np.array([20, 0, -20], np.float32), 0, 255).astype(np.uint8)
    image = Image.fromarray(tones).resize(_SIZE, Image.Resampling.BILINEAR)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(110)
    for row in range(6):
        draw.text((300, 300 + 400 * row), f"Line {row} of a photo, {1234 * (row + 1)}", fill="black", font=font)
    data = BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


async def measure(engine: Engine) -> Report:
    """Half a minute. Models that are not there are not downloaded; their tasks are left out with a word."""
    photo, tasks = await asyncio.to_thread(make_photo), engine.settings.tasks
    found = [await _measure(engine, task, photo) for task in ("ocr", "clip", "faces") if task in tasks]
    device = await asyncio.to_thread(engine.runtime.describe)
    return Report(device, _SIZE[0] * _SIZE[1] / 1e6, found, hints(engine))


async def _measure(engine: Engine, task: str, photo: bytes) -> Measured:
    keys = [key for network, key in engine.models.by_network().items() if network.switch == task]
    keys = [key for key in keys if key.ref.type != "textual"]
    cache = engine.settings.cache_folder
    if absent := [str(key.ref) for key in keys if key.ref.missing(cache) and not file_in_wheel(key.ref)]:
        return Measured(task, problem=f"{', '.join(absent)} is not there: `mt-photos-ml models pull`")
    try:
        async with AsyncExitStack() as stack:
            work = await _work(engine, task, stack)
            with ThreadPoolExecutor(engine.settings.request_threads, "bench") as workers:
                run = partial(_run, engine, workers, work, photo)
                await run()  # which is slow
                alone = [await run()]
                until = time.monotonic() + _ALONE
                while time.monotonic() < until:
                    alone.append(await run())
                rate = await _together(run, engine.settings.request_threads)
    except ModelUnavailable as error:
        return Measured(task, problem=str(error))
    return Measured(task, round(statistics.median(alone), 1), round(rate * _DAY))


async def _work(engine: Engine, task: str, stack: AsyncExitStack) -> Work:
    use, models = engine.store.use, engine.models
    if task == "ocr":
        text, reader = (
            await stack.enter_async_context(use(models.ocr_detector)),
            await stack.enter_async_context(use(models.ocr_recogniser)),
        )
        return lambda photo: ocr.read(photo, text, reader)
    if task == "clip":
        visual = await stack.enter_async_context(use(models.clip_visual))
        return lambda photo: clip.encode_photo(photo, visual)
    finder = await stack.enter_async_context(use(models.face_detector))
    knower = await stack.enter_async_context(use(models.face_recogniser))
    return lambda photo: faces.find(photo, finder, knower)


async def _run(engine: Engine, workers: ThreadPoolExecutor, work: Work, photo: bytes) -> float:
    """Milliseconds of one photo, from its bytes."""

    def timed() -> float:
        with engine.scheduler.worker():
            started = time.perf_counter()
            work(Photo.open(photo))
            return (time.perf_counter() - started) * 1000

    return await asyncio.get_running_loop().run_in_executor(workers, timed)


async def _together(run: Callable[[], Awaitable[float]], at_once: int) -> float:
    """Photos a second, so many at a time."""
    started, done = time.monotonic(), 0

    async def client() -> None:
        nonlocal done
        while time.monotonic() < started + _TOGETHER:
            await run()
            done += 1

    await asyncio.gather(*(client() for _ in range(at_once)))
    return done / (time.monotonic() - started)


def hints(engine: Engine) -> list[Hint]:
    """What would make it faster on this machine."""
    settings, found = engine.settings, list[Hint]()
    on_processor = not engine.runtime.is_accelerated
    found += [Hint("card", f"a card is not used: {refused}") for refused in engine.runtime.refused]
    plain = settings.tasks & {"clip", "faces"} - settings.int8_tasks
    if on_processor and plain:
        text = "int8 variants take about half the time: `mt-photos-ml models optimize NAME PHOTOS`, then INT8_TASKS="
        found.append(Hint("int8", text + ",".join(sorted(plain))))
    if on_processor and max(settings.request_threads, settings.model_intra_op_threads) > cores():
        names = "MACHINE_LEARNING_REQUEST_THREADS and MACHINE_LEARNING_MODEL_INTRA_OP_THREADS"
        found.append(Hint("threads", f"more threads than cores ({cores()}): leave {names} unset"))
    if on_processor and not settings.prepare_models:
        found.append(Hint("prepare", "models load faster and take less memory with PREPARE_MODELS=true"))
    return found
