# SPDX-License-Identifier: AGPL-3.0-only
"""The engine's cache of text vectors, and its queue. tests/contract tests what it recognises."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.__main__ import environment
from demo.pictures import colour_photo
from mt_photos_ml import engine as module
from mt_photos_ml.engine import Engine
from mt_photos_ml.engine.trace import Trace
from mt_photos_ml.engine.workers import Busy
from mt_photos_ml.settings import Settings
from photos import jpeg

pytestmark = pytest.mark.anyio


@contextlib.contextmanager
def engine_of(cache: Path, **settings: Any) -> Iterator[Engine]:
    given: dict[str, Any] = {**environment(cache), "PREPARE_MODELS": False, **settings}
    engine = Engine(Settings(**given))
    yield engine
    engine.close()


async def are_remembered(engine: Engine, *texts: str) -> list[bool]:
    notes = []
    for text in texts:
        trace = Trace()
        await engine.embed_text(text, trace)
        notes.append(trace.note == "remembered")
    return notes


async def test_a_texts_vector_is_cached_until_the_model_is_unloaded_or_replaced(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    with engine_of(tmp_path / "cache") as engine:
        assert await are_remembered(engine, "red", "red", "blue", "red") == [False, True, False, True]
        await engine.store.unload(engine.networks.clip_textual)
        assert await are_remembered(engine, "red", "red") == [False, True]
        os.utime(engine.networks.clip_textual.ref.path(tmp_path / "cache"), (1, 1))  # as if the file was replaced
        async with engine.store.use(engine.networks.clip_textual):
            assert await are_remembered(engine, "red") == [True], "the loaded model is still the old one"
            await engine.store.drop_unused()
            assert await are_remembered(engine, "red", "red") == [False, True]


async def test_long_texts_are_not_cached_and_the_least_recently_used_text_is_dropped(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED_TEXTS", 2)
    with engine_of(cache) as engine:
        assert await are_remembered(engine, "a" * 200, "a" * 200) == [False, True]
        assert await are_remembered(engine, "a" * 201, "a" * 201) == [False, False]
        assert await are_remembered(engine, "a", "b", "a", "c", "a", "b") == [False, False, True, False, True, False]


async def test_each_worker_process_gets_its_share_of_the_threads_and_the_queue(cache: Path) -> None:
    red = jpeg(colour_photo("red", (64, 48)))
    with engine_of(cache, MACHINE_LEARNING_WORKERS=4, MACHINE_LEARNING_REQUEST_THREADS=4) as engine:
        await engine.embed_photo(red, Trace())
        taken = [asyncio.ensure_future(engine.embed_photo(red, Trace())) for _ in range(26)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            engine.require("clip")
        assert len(await asyncio.gather(*taken)) == 26
