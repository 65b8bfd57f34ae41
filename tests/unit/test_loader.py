# SPDX-License-Identifier: AGPL-3.0-only
"""Loading a model: damaged files are fetched once more, and an error says why and what to do."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from model_folder import TEXTUAL, VISUAL, Folder
from mt_photos_ml.models.catalog import ModelRef
from mt_photos_ml.models.loader import Loaded, Loader, ModelKey, ModelUnavailable, stamp_of
from mt_photos_ml.runtime import Session
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.runtime.scheduler import CpuScheduler
from mt_photos_ml.tasks import clip

MORE_MEMORY = "give the service or its container more, or choose a smaller model"
INT8 = ModelKey(ModelRef("clip", "mine", "visual", "int8"), clip.Visual.load)


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    """A source that has the model and, as its int8 variant, a copy of it."""
    source = Folder(tmp_path)
    model = source.fetch(VISUAL.ref)
    (model.parent / "int8").mkdir()
    (model.parent / "int8" / "model.onnx").write_bytes(model.read_bytes())
    source.fetched.clear()
    return source


def load(source: Folder, key: ModelKey[Any] = VISUAL) -> Loaded[Any]:
    return asyncio.run(Loader(OrtRuntime(1), source, CpuScheduler(1)).load(key))


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b'{"version": "1.0", "trunc', None])
@pytest.mark.parametrize(
    ("key", "file"),
    [(VISUAL, "visual/model.onnx"), (VISUAL, "visual/preprocess_cfg.json"), (TEXTUAL, "textual/tokenizer.json")],
)
def test_damaged_files_are_fetched_once_more(
    source: Folder, key: ModelKey[Any], file: str, content: bytes | None
) -> None:
    path = key.ref.folder(source.cache) / file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    load(source, key)
    assert path.stat().st_size == len(whole)
    assert len(source.fetched) == 2
    assert source.invalidated == list(key.ref.files[:1] if "model" in file else key.ref.files[1:])


def test_damaged_files_that_stay_damaged_are_named(source: Folder) -> None:
    class Broken(Folder):
        def fetch(self, ref: ModelRef) -> Path:
            path = super().fetch(ref)
            path.write_bytes(b"half")
            return path

    known = ModelKey(ModelRef("clip", "ViT-B-32__openai", "visual"), clip.Visual.load)
    for key, how in ((VISUAL, "put it there again"), (known, "the service downloads it again")):
        for broken, times in ((Broken(source.cache), 2), (Broken(source.cache, can_mend=False), 1)):
            with pytest.raises(ModelUnavailable) as raised:
                load(broken, key)
            folder = key.ref.path(source.cache).parent
            assert str(raised.value) == f"{key.ref} is damaged; delete {folder} and {how}"
            assert raised.value.retry_after == 30
            assert len(broken.fetched) == times


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), f"there is not enough memory to load clip/mine/visual: {MORE_MEMORY}"),
        (RuntimeError("CUDA failure 100\nat line 5"), "clip/mine/visual can't be loaded: CUDA failure 100"),
        (RuntimeError(), "clip/mine/visual can't be loaded: RuntimeError"),
    ],
)
def test_an_error_of_the_runtime_is_reported_in_one_line(source: Folder, error: Exception, words: str) -> None:
    class Failing(OrtRuntime):
        def open(self, model: Path) -> Session:
            raise error

    with pytest.raises(ModelUnavailable) as raised:
        asyncio.run(Loader(Failing(1), source, CpuScheduler(1)).load(VISUAL))
    assert str(raised.value) == words
    assert source.invalidated == []


def test_the_stamp_of_a_model_changes_with_each_of_its_files(source: Folder) -> None:
    for key in (VISUAL, TEXTUAL, INT8):
        ref, folder, model = key.ref, key.ref.folder(source.cache), key.ref.path(source.cache)
        opened = model.parent / "int8" / "model.onnx" if ref.variant else model
        for path in (opened, *(folder / file for file in ref.files[1:])):
            before = stamp_of(ref, model)
            assert len(before) == len(ref.files)
            os.utime(path, (1, path.stat().st_mtime + 5))
            assert stamp_of(ref, model) != before, path
