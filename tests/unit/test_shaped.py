# SPDX-License-Identifier: AGPL-3.0-only
"""Devices plan each shape of a model's inputs: there are few shapes, no photo waits until one is planned, and a device
with wrong answers is not used. The processor stands in for a device."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from counting_device import CountingDevice, TestDevices
from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from demo.pictures import group_photo
from inside import eventually
from mt_photos_ml.engine import Engine
from mt_photos_ml.engine.trace import Trace
from mt_photos_ml.runtime import InferenceError, times
from mt_photos_ml.runtime.example import example, shapes_like
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.runtime.shaped import ShapedRuntime
from mt_photos_ml.settings import Settings
from ocr_models import build_ocr
from photos import jpeg
from service import until

pytestmark = pytest.mark.anyio

SIZES = 1000
ALL = {"ocr/tiny": 11, "facial-recognition/demo-faces": 3, "clip/demo-colours": 2}
"""The number of shapes, and so of sessions, of each model."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("cache"))
    build_ocr(folder / "ocr" / "tiny")
    return folder


@contextlib.contextmanager
def engine_on(cache: Path, device: CountingDevice, wanted: str = "cuda", **more: Any) -> Iterator[Engine]:
    given = {**demo_environment(cache), "PREPARE_MODELS": False, "OCR_MODEL_NAME": "tiny", **more}
    engine = Engine(Settings(**given), devices=TestDevices(device, wanted))
    yield engine
    engine.close()


@pytest.fixture
def device() -> CountingDevice:
    device = CountingDevice()
    device.may_plan.set()
    return device


def page(size: tuple[int, int], lines: int = 1) -> bytes:
    """A white page with dark bars instead of lines of text."""
    image = Image.new("RGB", size, "white")
    for i in range(lines):
        top = size[1] * (i + 0.3) / lines
        ImageDraw.Draw(image).rectangle((size[0] * 0.1, top, size[0] * 0.8, top + size[1] * 0.4 / lines), "black")
    return jpeg(image)


def planned(engine: Engine, task: str) -> list[tuple[int, int]]:
    """How many shapes are planned and how many are not yet, for each model of the task."""
    plans = [model.plans for model in engine.status().models if model.task == task]
    return [(each.ready, each.waiting) for each in plans if each]


async def test_photos_of_any_size_need_few_sessions_of_one_shape_each(cache: Path, device: CountingDevice) -> None:
    chance = random.Random(0)
    people = [jpeg(group_photo((640, 480), range(count))[0]) for count in (1, 2, 12)]
    with engine_on(cache, device) as engine:
        for i in range(SIZES):
            short = chance.randint(16, 700)
            long = min(int(short * chance.choice([1, 4 / 3, 3 / 2, 16 / 9, 2.2, chance.uniform(1, 6)])), 3000)
            size = (short, long) if chance.random() < 0.5 else (long, short)
            photo = page(size, chance.randint(1, 5))
            await engine.read_text(photo, Trace())
            if i % 10 == 0:
                await engine.find_faces(people[i // 10 % 3], Trace())
                await engine.embed_photo(photo, Trace())
        await engine.embed_text("red", Trace())
        await engine.store.prepare()
    assert all(len(shapes) == 1 for _, shapes in device.sessions)
    assert Counter(name.rpartition("/")[0] for name, _ in device.sessions) == ALL
    assert len(device.sessions) <= 16


async def test_no_photo_waits_until_its_shape_is_planned(cache: Path, device: CountingDevice) -> None:
    device.may_plan.clear()
    with engine_on(cache, device) as engine:
        lines = await engine.read_text(page((900, 700), 3), Trace())
        assert [line.text for line in lines] == ["a"] * 3
        assert not device.sessions
        device.may_plan.set()
        await eventually(lambda: planned(engine, "ocr") == [(1, 6), (1, 3)])
        again = await engine.read_text(page((900, 700), 3), Trace())
        assert [line.text for line in again] == ["a"] * 3
        await engine.store.prepare()
        assert planned(engine, "ocr") == [(7, 0), (4, 0)]


async def test_preloaded_models_are_planned_at_once(cache: Path, device: CountingDevice) -> None:
    preload = {"OCR__DETECTION": "tiny", "CLIP__VISUAL": "demo-colours"}
    given = {f"MACHINE_LEARNING_PRELOAD__{name}": model for name, model in preload.items()}
    with engine_on(cache, device, **given) as engine:
        await engine.store.preload()
        assert planned(engine, "ocr") == [(7, 0)]
        assert planned(engine, "clip") == [(1, 0)]


@pytest.mark.parametrize("type", ["detection", "recognition"])
async def test_a_device_with_wrong_answers_is_not_used_for_that_task(
    cache: Path, device: CountingDevice, type: str, caplog: pytest.LogCaptureFixture
) -> None:
    device.lies.add(type)
    with engine_on(cache, device, TASKS="ocr,clip") as engine:
        for _ in range(3):
            assert [line.text for line in await engine.read_text(page((900, 700)), Trace())] == ["a"]
            await engine.embed_photo(page((90, 70)), Trace())
            await engine.store.prepare()
        assert engine.runs_on() == {"ocr": "CPU", "clip": "TestDevice"}
        (unused,) = engine.status().refused
        assert unused.startswith(f"TestDevice: ocr/tiny/{type}: its answers differ from the processor's")
    assert len([line for line in caplog.messages if "is not used for ocr any more" in line]) == 1


async def test_if_a_device_breaks_its_current_inferences_fail_and_the_processor_takes_over(cache: Path) -> None:
    photo, device = page((900, 700)), CountingDevice(pause_s=0.2)
    device.may_plan.set()
    with engine_on(cache, device, MACHINE_LEARNING_REQUEST_THREADS=8) as engine:
        await engine.embed_photo(photo, Trace())
        await eventually(lambda: planned(engine, "clip")[0] == (1, 0))
        before = await engine.embed_photo(photo, Trace())
        device.breaks.add("visual")
        answers = await asyncio.gather(*(engine.embed_photo(photo, Trace()) for _ in range(8)), return_exceptions=True)
        assert 1 <= len([answer for answer in answers if isinstance(answer, InferenceError)]) <= 2
        assert (await engine.embed_photo(photo, Trace()) @ before) > 0.9999
        assert engine.runs_on()["clip"] == "CPU"


async def test_a_slow_device_is_used_only_if_it_is_named(cache: Path, tmp_path: Path) -> None:
    slow = CountingDevice(pause_s=0.3)
    slow.may_plan.set()
    build(tmp_path)
    for wanted, expected in (("auto", "CPU"), ("cuda", "TestDevice"), ("auto", "CPU")):
        with engine_on(tmp_path, slow, wanted) as engine:
            await engine.embed_photo(page((90, 70)), Trace())
            await engine.store.prepare()
            assert engine.runs_on() == {"clip": expected}
    assert len(slow.sessions) == 2, "it is kept that it is slow"


async def test_a_device_is_measured_again_after_its_driver_or_the_version_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = CountingDevice(pause_s=0.3)
    slow.may_plan.set()
    build(tmp_path)
    for driver, version, measured in (("1", "v1", 1), ("1", "v1", 1), ("2", "v1", 2), ("2", "v2", 3)):
        monkeypatch.setattr(times, "version", lambda version=version: version)
        with engine_on(tmp_path, replace(slow, driver=driver), "auto") as engine:
            await engine.embed_photo(page((90, 70)), Trace())
            await engine.store.prepare()
        assert len(slow.sessions) == measured


def test_a_device_that_failed_is_used_again_once_its_answers_match_the_processors(
    cache: Path, device: CountingDevice, caplog: pytest.LogCaptureFixture
) -> None:
    devices = TestDevices(device)
    runtime = ShapedRuntime(devices, OrtRuntime(1), retry_seconds=0.1)
    models = [cache / "clip" / "demo-colours" / type / "model.onnx" for type in ("visual", "textual")]
    photos, texts = [runtime.open(model) for model in models]
    feed = example(shapes_like(photos.inputs, (1, 3, 224, 224)))
    photos.declare([(1, 3, 224, 224)])
    texts.declare([(1, 77)])

    def ready() -> list[int]:
        photos.run(feed)  # starts planning
        return [plans.ready for model in models if (plans := runtime.plans(model))]

    for model in models:
        runtime.plan(model)
    assert ready() == [1, 1]
    device.breaks.add("visual")
    with pytest.raises(RuntimeError, match="the driver is gone"):
        photos.run(feed)
    photos = runtime.open(models[0])  # the retry also covers a model opened meanwhile
    photos.declare([(1, 3, 224, 224)])
    until(lambda: ready() == [] and len(device.sessions) >= 3)
    assert "(retry in 0 minutes)" in caplog.text
    device.breaks.clear()
    until(lambda: ready() == [1, 0])
    assert [runtime.runs_on(model) for model in models] == ["TestDevice", "TestDevice"]
    device.breaks.add("visual")
    with pytest.raises(RuntimeError, match="the driver is gone"):
        photos.run(feed)
    device.breaks.clear()
    device.lies.add("visual")
    until(lambda: ready() == [] and "differ from the processor's" in devices.distrusted.get("clip", ""))


def test_a_device_with_wrong_answers_is_not_retried(cache: Path, device: CountingDevice) -> None:
    runtime = ShapedRuntime(TestDevices(device), OrtRuntime(1), retry_seconds=0.01)
    model = cache / "clip" / "demo-colours" / "visual" / "model.onnx"
    session = runtime.open(model)
    session.declare([(1, 3, 224, 224)])
    device.lies.add("visual")
    runtime.plan(model)
    device.lies.clear()
    time.sleep(0.5)
    assert (runtime.runs_on(model), session.few_shapes, len(device.sessions)) == ("CPU", False, 1)


@pytest.mark.parametrize("harm", ["damaged", "removed", "gone with its folder", "another model"])
def test_a_changed_model_file_does_not_count_as_a_failure_of_the_device(
    tmp_path: Path, device: CountingDevice, harm: str
) -> None:
    build(tmp_path)
    runtime = ShapedRuntime(TestDevices(device), OrtRuntime(1))
    visual, textual = (tmp_path / "clip" / "demo-colours" / type / "model.onnx" for type in ("visual", "textual"))
    session = runtime.open(visual)
    session.declare([(1, 3, 224, 224)])
    if harm == "damaged":
        visual.write_bytes(b"")
    elif harm == "another model":
        visual.write_bytes(textual.read_bytes())
    else:
        (visual if harm == "removed" else visual.parent).rename(tmp_path / "away")
    runtime.plan(visual)
    assert (runtime.runs_on(visual), session.few_shapes) == ("TestDevice", True)
    assert session.run(example(shapes_like(session.inputs, (1, 3, 224, 224)))), "the processor answers"


def test_a_reopened_model_keeps_its_planned_shapes(cache: Path, device: CountingDevice) -> None:
    runtime = ShapedRuntime(TestDevices(device), OrtRuntime(1))
    model = cache / "clip" / "demo-colours" / "visual" / "model.onnx"
    first = runtime.open(model)
    first.declare([(1, 3, 112, 112)])
    runtime.plan(model)
    again = runtime.open(model)
    again.declare([(1, 3, 112, 112)])
    runtime.plan(model)
    assert len(device.sessions) == 1
    del first, again
