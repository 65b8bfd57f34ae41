# SPDX-License-Identifier: AGPL-3.0-only
"""A model is loaded, or it is said in words why not; what is damaged is fetched once more."""

import asyncio
import gc
import logging
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.models import build_clip
from mt_photos_ml.models import loader
from mt_photos_ml.models.catalog import ModelRef
from mt_photos_ml.models.hub import DownloadError
from mt_photos_ml.models.loader import Loader, ModelKey, ModelUnavailable, first_line, stamp_of
from mt_photos_ml.runtime import InferenceError
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.runtime.scheduler import CpuScheduler
from mt_photos_ml.tasks import clip

VISUAL = ModelKey(ModelRef("clip", "mine", "visual"), clip.Visual.load)
TEXTUAL = ModelKey(ModelRef("clip", "mine", "textual"), clip.Textual.load)
INT8 = ModelKey(ModelRef("clip", "mine", "visual", "int8"), clip.Visual.load)


class Folder:
    """A source that has the models, and mends nothing."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.fetched = 0
        self.invalidated: list[str] = []
        self.can_mend = True
        build_clip(cache / "clip" / "mine")

    def fetch(self, ref: ModelRef) -> Path:
        self.fetched += 1
        return ref.path(self.cache)

    def invalidate(self, ref: ModelRef, files: Sequence[str]) -> bool:
        self.invalidated += files
        return self.can_mend


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def load(source: Folder, key: ModelKey[Any] = VISUAL) -> Any:
    return asyncio.run(Loader(OrtRuntime(1), source, CpuScheduler(1, 1)).load(key)).model


def variant(source: Folder) -> Path:
    """The model's int8 variant, which is the model here."""
    path = VISUAL.ref.path(source.cache).parent / "int8" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(VISUAL.ref.path(source.cache).read_bytes())
    return path


@pytest.mark.parametrize(
    ("key", "name"), [(VISUAL, "clip/mine/visual"), (INT8, "clip/mine/visual (int8)")], ids=["itself", "variant"]
)
def test_the_log_says_what_was_loaded(
    source: Folder, key: ModelKey[Any], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    variant(source)
    with caplog.at_level(logging.INFO):
        load(source, key)
    assert re.fullmatch(re.escape(f"loaded {name} in ") + r"\d\.\d\d s", caplog.messages[-1])


@pytest.mark.parametrize(("before", "after", "grew"), [(100.0, 350.5, 250.5), (300.0, 100.0, 0.0)])
def test_by_how_much_memory_grew_is_kept(
    source: Folder, monkeypatch: pytest.MonkeyPatch, before: float, after: float, grew: float
) -> None:
    monkeypatch.setattr(loader, "anonymous_mb", iter([before, after]).__next__)
    loading = Loader(OrtRuntime(1), source, CpuScheduler(1, 1)).load(VISUAL)
    assert asyncio.run(loading).memory_mb == grew


def test_a_model_that_cannot_compute_is_named(source: Folder) -> None:
    session = load(source).session
    with pytest.raises(InferenceError, match=r"^clip/mine/visual can't compute this"):
        session.run({session.inputs[0].name: np.zeros((1, 3, 5, 5), np.float32)})


def test_a_download_that_fails_when_nobody_waits_any_more_is_not_said_by_asyncio(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    may_fail = threading.Event()

    class Failing(Folder):
        def fetch(self, ref: ModelRef) -> Path:
            assert may_fail.wait(10)
            raise DownloadError("no mirror answers")

    async def hang_up() -> None:
        loader = Loader(OrtRuntime(1), Failing(tmp_path), CpuScheduler(1, 1))
        waiting = asyncio.create_task(loader.fetch(VISUAL.ref))
        while not loader.fetching:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        may_fail.set()
        while loader.fetching:
            await asyncio.sleep(0.01)

    asyncio.run(hang_up())
    gc.collect()
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("key", "file", "invalidated"),
    [
        (VISUAL, "visual/model.onnx", ["visual/model.onnx"]),
        (VISUAL, "visual/preprocess_cfg.json", ["config.json", "visual/preprocess_cfg.json"]),
        (
            TEXTUAL,
            "textual/tokenizer.json",
            ["config.json", "textual/tokenizer.json", "textual/tokenizer_config.json"],
        ),
    ],
)
def test_what_is_damaged_is_fetched_once_more_and_then_named(
    source: Folder, key: ModelKey[Any], file: str, invalidated: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (source.cache / "clip" / "mine" / file).write_bytes(b"half")
    with pytest.raises(ModelUnavailable) as raised:
        load(source, key)
    folder = key.ref.path(source.cache).parent
    assert str(raised.value) == f"{key.ref} is damaged; delete {folder} and put it there again"
    assert raised.value.retry_after == 30
    assert source.fetched == 2
    assert source.invalidated == invalidated
    if file != "visual/model.onnx":
        assert f"{key.ref} is damaged: {folder}: " in caplog.text


def test_a_damaged_variant_is_not_the_originals_fault(source: Folder) -> None:
    variant(source).write_bytes(b"half")
    with pytest.raises(ModelUnavailable) as raised:
        load(source, INT8)
    again = "`mt-photos-ml models optimize mine PHOTOS` makes it again"
    assert str(raised.value) == f"clip/mine/visual can't be loaded: its int8 variant is damaged; {again}"
    assert source.invalidated == []


def test_without_memory_it_is_said_so(source: Folder) -> None:
    def load_nothing(*_: object) -> Any:
        raise MemoryError

    with pytest.raises(ModelUnavailable, match=r"^there is not enough memory to load clip/mine/visual$"):
        load(source, ModelKey(VISUAL.ref, load_nothing))
    assert source.invalidated == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 300), "x" * 300),
        (ValueError("x" * 301), "x" * 300),
    ],
)
def test_an_error_is_said_in_one_line(error: Exception, words: str) -> None:
    assert first_line(error) == words


def test_the_stamp_of_a_model_changes_with_each_of_its_files(source: Folder) -> None:
    variant(source)
    when = iter(range(1, 100))
    for key in (VISUAL, TEXTUAL, INT8):
        ref, folder, model = key.ref, key.ref.folder(source.cache), key.ref.path(source.cache)
        opened = model.parent / "int8" / "model.onnx" if ref.variant else model
        for path in (opened, *(folder / file for file in ref.files[1:])):
            before = stamp_of(ref, model)
            assert len(before) == len(ref.files)
            os.utime(path, (1, next(when)))
            assert stamp_of(ref, model) != before, path
        (folder / "config.json").rename(folder / "config")
        assert len(stamp_of(ref, model)) == len(ref.files) - 1
        (folder / "config").rename(folder / "config.json")
