# SPDX-License-Identifier: AGPL-3.0-only
"""The store of loaded models: one load for all who wait, dropped when idle, mended when damaged."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from demo.models import build_clip, build_faces
from mt_photos_ml.models.catalog import ModelRef
from mt_photos_ml.models.hub import DownloadError
from mt_photos_ml.models.loader import Loader, Model, ModelKey, ModelUnavailable
from mt_photos_ml.models.store import Store
from mt_photos_ml.runtime import RuntimeSession
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.runtime.scheduler import CpuScheduler
from mt_photos_ml.tasks import clip, faces

pytestmark = pytest.mark.anyio

VISUAL = ModelKey(ModelRef("clip", "mine", "visual"), clip.Visual.load)
TEXTUAL = ModelKey(ModelRef("clip", "mine", "textual"), clip.Textual.load)
DETECTION = ModelKey(ModelRef("facial-recognition", "mine", "detection"), faces.Detector.load)


class Folder:
    """A source of models that builds them where they are missing, as a download would bring them."""

    def __init__(self, cache: Path, *, can_mend: bool = True, seconds: float = 0.0) -> None:
        self.cache, self.can_mend, self.seconds = cache, can_mend, seconds
        self.fetched: list[ModelRef] = []
        self.invalidated: list[str] = []
        self.failure: str | None = None

    def fetch(self, ref: ModelRef) -> Path:
        self.fetched.append(ref)
        time.sleep(self.seconds)
        if self.failure:
            raise DownloadError(self.failure)
        if ref.missing(self.cache):
            (build_clip if ref.task == "clip" else build_faces)(ref.folder(self.cache))
        return ref.path(self.cache)

    def invalidate(self, ref: ModelRef, files: Sequence[str]) -> bool:
        self.invalidated += files
        for file in files:
            (ref.folder(self.cache) / file).unlink()
        return self.can_mend


class Counting(OrtRuntime):
    """onnxruntime, counting what it opens and how many at once."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.opened: list[Path] = []
        self._at_once = threading.Semaphore(1)

    def open(self, model: Path) -> RuntimeSession:
        assert self._at_once.acquire(blocking=False), "two loads at a time"
        try:
            self.opened.append(model)
            time.sleep(0.05)
            return super().open(model)
        finally:
            self._at_once.release()


@pytest.fixture
def runtime() -> Counting:
    return Counting()


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def make(
    runtime: Counting,
    source: Folder,
    ttl: float = 0,
    kept: Sequence[ModelKey[Model]] = (),
    restart: Callable[[], None] = lambda: None,
) -> Store:
    return Store(runtime, Loader(runtime, source, CpuScheduler(1, 1)), ttl, kept, restart)


async def used(store: Store, *keys: ModelKey[Any]) -> list[Any]:
    async with contextlib.AsyncExitStack() as stack:
        return [await stack.enter_async_context(store.use(key)) for key in keys]


async def test_twenty_requests_wait_for_one_load(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source)
    models = await asyncio.gather(*(used(store, VISUAL) for _ in range(20)))
    assert len({id(model) for (model,) in models}) == 1
    assert store.loaded == ["clip/mine/visual"]
    assert len(runtime.opened) == len(source.fetched) == 1


async def test_models_are_loaded_one_at_a_time(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source)
    await asyncio.gather(used(store, DETECTION), used(store, VISUAL))
    assert len(runtime.opened) == 2


async def test_a_model_that_is_being_downloaded_does_not_hold_up_another(runtime: Counting, tmp_path: Path) -> None:
    build_faces(tmp_path / "facial-recognition" / "mine")
    held = threading.Event()

    class Slow(Folder):
        def fetch(self, ref: ModelRef) -> Path:
            if ref == VISUAL.ref:
                assert held.wait(10)
            return super().fetch(ref)

    store = make(runtime, Slow(tmp_path))
    waiting = asyncio.create_task(used(store, VISUAL))
    await used(store, DETECTION)
    assert not waiting.done()
    held.set()
    await waiting


async def test_an_idle_model_is_dropped_and_its_memory_freed(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source, ttl=0.2)
    reaper = asyncio.create_task(store.run_maintenance())
    (model,) = await used(store, VISUAL)
    gone = weakref.ref(model.session)
    del model
    for _ in range(100):
        await asyncio.sleep(0.05)
        gc.collect()
        if not store.loaded and gone() is None:
            break
    assert store.loaded == []
    assert gone() is None
    await used(store, VISUAL)
    reaper.cancel()
    assert len(runtime.opened) == 2


async def test_a_model_in_use_is_not_dropped(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source)
    async with store.use(VISUAL):
        assert await store.drop_unused() == []
        assert store.loaded == ["clip/mine/visual"]
    assert await store.drop_unused() == ["clip/mine/visual"]


async def test_what_is_preloaded_is_not_dropped_when_idle(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source, kept=[TEXTUAL])
    await store.preload()
    await used(store, VISUAL)
    await store.drop_idle(0)
    assert store.loaded == ["clip/mine/textual"]
    assert await store.drop_unused() == ["clip/mine/textual"]


class Accelerated(Counting):
    """As if the models were on a graphics card, which only the end of the process clears; the card is not there."""

    @property
    def holds_a_device(self) -> bool:
        return bool(self.opened)


@pytest.mark.parametrize("kept", [(), (VISUAL,)], ids=["nothing-kept", "one-kept"])
async def test_where_a_graphics_card_was_used_the_process_starts_afresh_when_idle(
    source: Folder, kept: Sequence[ModelKey[Model]]
) -> None:
    afresh: list[list[str]] = []
    store = make(Accelerated(), source, 0.2, kept, lambda: afresh.append(store.loaded))
    caring = asyncio.create_task(store.run_maintenance())
    await asyncio.sleep(0.5)
    assert not afresh, "no card was used yet"
    async with store.use(VISUAL):
        await asyncio.sleep(0.5)
        assert not afresh, "it is in use"
    until = time.monotonic() + (1 if kept else 30)
    while not afresh and time.monotonic() < until:
        await asyncio.sleep(0.05)
    caring.cancel()
    assert afresh == ([] if kept else [[]])


async def test_a_processor_gives_its_memory_back_without_a_new_process(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source, 0.2, restart=lambda: pytest.fail("started afresh"))
    caring = asyncio.create_task(store.run_maintenance())
    await used(store, VISUAL)
    until = time.monotonic() + 30
    while store.loaded and time.monotonic() < until:
        await asyncio.sleep(0.05)
    assert store.loaded == []
    caring.cancel()


@pytest.mark.parametrize("file", ["visual/model.onnx", "visual/preprocess_cfg.json"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
async def test_a_damaged_model_is_removed_and_fetched_once_more(
    runtime: Counting, source: Folder, file: str, content: bytes
) -> None:
    source.fetch(VISUAL.ref)
    (source.cache / "clip" / "mine" / file).write_bytes(content)
    await used(make(runtime, source), VISUAL)
    assert len(source.fetched) == 3
    assert file in source.invalidated
    assert ("visual/model.onnx" in source.invalidated) == (file == "visual/model.onnx")


@pytest.mark.parametrize("content", [b"", b'{"a": 1}', b'{"version": "1.0", "trunc'])
async def test_a_damaged_tokenizer_is_removed_and_fetched_once_more(
    runtime: Counting, source: Folder, content: bytes
) -> None:
    source.fetch(TEXTUAL.ref)
    (source.cache / "clip" / "mine" / "textual" / "tokenizer.json").write_bytes(content)
    await used(make(runtime, source), TEXTUAL)
    assert "textual/tokenizer.json" in source.invalidated
    assert "textual/model.onnx" not in source.invalidated


async def test_a_damaged_model_that_cannot_be_fetched_is_named_with_what_to_do(
    runtime: Counting, tmp_path: Path
) -> None:
    source = Folder(tmp_path, can_mend=False)
    source.fetch(VISUAL.ref).write_bytes(b"half")
    with pytest.raises(ModelUnavailable, match=r"clip/mine/visual is damaged; delete .*visual"):
        await used(make(runtime, source), VISUAL)


async def test_a_failed_download_is_not_tried_by_every_request(
    runtime: Counting, source: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(runtime, source)
    source.failure = "no mirror answers"
    for _ in range(5):
        with pytest.raises(ModelUnavailable, match="no mirror answers") as caught:
            await used(store, VISUAL)
        assert caught.value.retry_after > 0
    assert len(source.fetched) == 1
    source.failure = None
    with monkeypatch.context() as later:
        now = time.monotonic()
        later.setattr("mt_photos_ml.models.store.time.monotonic", lambda: now + 31)
        await used(store, VISUAL)


async def test_a_request_does_not_wait_for_ever_for_a_long_download(
    runtime: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(runtime, Folder(tmp_path, seconds=0.5))
    with pytest.raises(ModelUnavailable, match="still being downloaded"):
        await store._get(VISUAL, patience=0.1)
    await used(store, VISUAL)
    assert len(runtime.opened) == 1


async def test_preload_goes_on_after_a_failure(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source, kept=[TEXTUAL, VISUAL])
    source.fetch(TEXTUAL.ref).write_bytes(b"half")
    source.can_mend = False
    await store.preload()
    assert store.loaded == ["clip/mine/visual"]


class Preparing(Counting):
    """As if it could make another form of every model; counts what it is asked for."""

    def __init__(self, works: bool = True) -> None:
        super().__init__()
        self.works = works
        self.prepared: list[tuple[Path, tuple[int, ...]]] = []

    def prepare(self, model: Path, shape: Sequence[int]) -> bool:
        self.prepared.append((model, tuple(shape)))
        return self.works


async def test_a_model_answers_as_it_is_and_is_changed_over_to_its_prepared_form(source: Folder) -> None:
    store = make(runtime := Preparing(), source)
    async with store.use(VISUAL) as first:
        assert runtime.prepared == []
        await store.prepare()
        async with store.use(VISUAL) as second:
            assert second is not first
    assert runtime.prepared == [(VISUAL.ref.path(source.cache), (1, 3, 224, 224))]
    await store.prepare()
    assert len(runtime.prepared) == 1, "a model is prepared once for as long as it is loaded"
    assert len(runtime.opened) == 2


async def test_a_model_that_can_not_be_prepared_stays_as_it_is(source: Folder) -> None:
    store = make(runtime := Preparing(works=False), source)
    (first,) = await used(store, VISUAL)
    await store.prepare()
    assert await used(store, VISUAL) == [first]
    assert len(runtime.opened) == 1


async def test_models_are_prepared_in_a_pause_and_not_while_they_are_in_use(
    source: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt_photos_ml.models.store._PAUSE", 0.2)
    store = make(runtime := Preparing(), source)
    caring = asyncio.create_task(store.run_maintenance())
    async with store.use(VISUAL):
        await asyncio.sleep(0.8)
        assert runtime.prepared == []
    for _ in range(100):
        await asyncio.sleep(0.05)
        if runtime.prepared:
            break
    caring.cancel()
    assert len(runtime.prepared) == 1


async def test_without_a_pause_they_are_prepared_all_the_same_after_a_while(
    source: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt_photos_ml.models.store._PAUSE", 0.2)
    monkeypatch.setattr("mt_photos_ml.models.store._LONGEST_WORK", 0.3)
    store = make(runtime := Preparing(), source)
    caring = asyncio.create_task(store.run_maintenance())
    async with store.use(VISUAL):
        for _ in range(100):
            await asyncio.sleep(0.05)
            if runtime.prepared:
                break
    caring.cancel()
    assert len(runtime.prepared) == 1


async def test_a_model_that_is_replaced_is_taken_up_and_known_as_another(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source)
    (first,) = await used(store, VISUAL)
    await store.reload_replaced()
    assert (await used(store, VISUAL), store.generation(VISUAL)) == ([first], 0)
    path = VISUAL.ref.path(source.cache)
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    await store.reload_replaced()
    assert await used(store, VISUAL) != [first]
    assert store.generation(VISUAL) == 1


async def test_one_that_is_replaced_while_it_is_not_loaded_is_known_as_another(
    runtime: Counting, source: Folder
) -> None:
    store = make(runtime, source)
    await used(store, VISUAL)
    await store.drop_unused()
    path = source.cache / "clip" / "mine" / "visual" / "preprocess_cfg.json"
    path.write_text(path.read_text() + " ")
    await store.reload_replaced()
    assert store.generation(VISUAL) == 1
    assert store.loaded == []


async def test_what_is_replaced_by_no_model_leaves_the_loaded_one_in_its_place(
    runtime: Counting, source: Folder
) -> None:
    source.can_mend = False
    store = make(runtime, source)
    (first,) = await used(store, VISUAL)
    VISUAL.ref.path(source.cache).write_bytes(b"half")
    for _ in range(2):
        await store.reload_replaced()
    assert await used(store, VISUAL) == [first]
    assert store.generation(VISUAL) == 0
    assert len(runtime.opened) == 2, "it is tried once"


async def test_a_share_that_is_gone_is_no_replacement(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source)
    (first,) = await used(store, VISUAL)
    folder = VISUAL.ref.folder(source.cache)
    folder.rename(folder.with_name("away"))
    await store.reload_replaced()
    assert await used(store, VISUAL) == [first]
    folder.with_name("away").rename(folder)
    await store.reload_replaced()
    assert await used(store, VISUAL) == [first]
