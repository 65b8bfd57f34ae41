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
from types import SimpleNamespace
from typing import Any, cast

import pytest

import clock
from demo.models import build_clip, build_faces
from mt_photos_ml.models import store as store_module
from mt_photos_ml.models.catalog import ModelRef
from mt_photos_ml.models.hub import DownloadError
from mt_photos_ml.models.loader import Loaded, Loader, Model, ModelKey, ModelUnavailable, T
from mt_photos_ml.models.state import Entry, ModelState
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
    store, now = make(runtime, source), 1000.0
    monkeypatch.setattr(store_module, "time", SimpleNamespace(monotonic=lambda: now))
    source.failure = "no mirror answers"
    for seconds in (0, 1, 19.5):
        now = 1000.0 + seconds
        with pytest.raises(ModelUnavailable, match="no mirror answers") as caught:
            await used(store, VISUAL)
        assert caught.value.retry_after == 30 - seconds
    assert len(source.fetched) == 1
    source.failure = None
    now = 1030.0
    await used(store, VISUAL)


async def test_a_load_that_fails_when_nobody_waits_any_more_is_said_once(
    runtime: Counting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Folder(tmp_path, seconds=0.2)
    source.failure = "no mirror answers"
    store = make(runtime, source)
    with pytest.raises(ModelUnavailable, match="still being downloaded"):
        await store._get(VISUAL, patience=0.05)
    while store._loading:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0)
    gc.collect()
    assert caplog.messages == ["clip/mine/visual can't be downloaded: no mirror answers"]


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


async def test_a_model_is_in_use_until_the_last_of_its_users_has_finished(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source)
    async with store.use(VISUAL):
        async with store.use(VISUAL):
            pass
        assert await store.drop_unused() == []


async def test_what_was_used_just_now_is_not_idle(
    runtime: Counting, source: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = make(runtime, source), 1000.0
    monkeypatch.setattr(store_module, "time", SimpleNamespace(monotonic=lambda: now))
    await used(store, VISUAL)
    await store.drop_idle(10)
    assert store.loaded == ["clip/mine/visual"]
    now += 10
    await store.drop_idle(10)
    assert store.loaded == []


async def test_a_dropped_model_is_gone_before_memory_is_given_back(source: Folder) -> None:
    class Trimming(Counting):
        def trim_memory(self) -> None:
            gc.collect()
            left.append(session())

    runtime, left = Trimming(), list[object]()
    store = make(runtime, source)
    (model,) = await used(store, VISUAL)
    session = weakref.ref(model.session)
    del model
    await store.drop_unused()
    assert left == [None]


async def test_a_preload_has_all_the_time_it_needs(runtime: Counting, source: Folder) -> None:
    patiences = []

    class Patient(Store):
        async def _get(self, key: ModelKey[T], patience: float | None = 30) -> Entry[T]:
            patiences.append(patience)
            return await super()._get(key, patience)

    store = Patient(runtime, Loader(runtime, source, CpuScheduler(1, 1)), 0, [VISUAL])
    await store.preload()
    await store.load(VISUAL)
    assert patiences == [None, None]


# what a person asks for, and is told

NO_MIRROR = "clip/mine/visual can't be downloaded: no mirror answers"


async def test_a_person_is_told_what_is_the_matter_with_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_fetch, may_open = threading.Event(), threading.Event()

    class HeldSource(Folder):
        def fetch(self, ref: ModelRef) -> Path:
            assert may_fetch.wait(10)
            return super().fetch(ref)

    class HeldRuntime(Counting):
        def open(self, model: Path) -> RuntimeSession:
            assert may_open.wait(10)
            return super().open(model)

    async def comes(name: str) -> None:
        async with asyncio.timeout(10):
            while store.state(VISUAL.ref) != ModelState(name):
                await asyncio.sleep(0.01)

    store, now = make(HeldRuntime(), HeldSource(tmp_path)), 1000.0
    monkeypatch.setattr(store_module, "time", SimpleNamespace(monotonic=lambda: now))
    await comes("not loaded")
    waiting = asyncio.create_task(used(store, VISUAL))
    await comes("downloading")
    may_fetch.set()
    await comes("loading")
    with pytest.raises(ModelUnavailable, match=r"^clip/mine/visual is still being loaded$"):
        await store._get(VISUAL, patience=0.01)
    may_open.set()
    await waiting
    memory_mb = store._entries[VISUAL.ref].loaded.memory_mb
    async with store.use(VISUAL):
        assert store.state(VISUAL.ref) == ModelState("in use", None, memory_mb)
    now += 7
    assert store.state(VISUAL.ref) == ModelState("ready", 7, memory_mb)
    assert store.state(TEXTUAL.ref) == ModelState("not loaded")


async def test_a_person_is_told_why_a_model_failed_until_it_is_tried_again(
    runtime: Counting, source: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = make(runtime, source), 1000.0
    monkeypatch.setattr(store_module, "time", SimpleNamespace(monotonic=lambda: now))
    source.failure = "no mirror answers"
    with pytest.raises(ModelUnavailable):
        await used(store, VISUAL)
    for seconds in (0, 29.5):
        now = 1000.0 + seconds
        assert store.state(VISUAL.ref) == ModelState("failed", error=NO_MIRROR)
    now = 1030.0
    assert store.state(VISUAL.ref) == ModelState("not loaded")


@pytest.mark.parametrize("by_hand", [Store.load, Store.pull])
async def test_what_a_person_asks_for_is_tried_at_once(
    runtime: Counting, source: Folder, by_hand: Callable[[Store, ModelKey[Any]], Any]
) -> None:
    store = make(runtime, source)
    source.failure = "no mirror answers"
    for tried in (1, 2):
        with pytest.raises(ModelUnavailable) as raised:
            await by_hand(store, VISUAL)
        assert str(raised.value) == NO_MIRROR
        assert len(source.fetched) == tried
    with pytest.raises(ModelUnavailable):
        await used(store, VISUAL)
    source.failure = None
    await by_hand(store, VISUAL)
    assert store.loaded == (["clip/mine/visual"] if by_hand is Store.load else [])
    await used(store, VISUAL)


async def test_a_model_is_unloaded_by_hand_where_nobody_uses_it(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source)
    assert await store.unload(VISUAL) is True
    async with store.use(TEXTUAL), store.use(VISUAL):
        assert await store.unload(VISUAL) is False
        assert store.loaded == ["clip/mine/textual", "clip/mine/visual"]
    assert await store.unload(VISUAL) is True
    assert store.loaded == ["clip/mine/textual"]


# models whose files are replaced


def replace(source: Folder, key: ModelKey[Any], seed: bytes = b"") -> None:
    """Puts another file of the same content under the model's name."""
    model = key.ref.path(source.cache)
    other = model.with_suffix(".new")
    other.write_bytes(seed or model.read_bytes())
    other.replace(model)


async def test_a_model_that_was_replaced_is_taken_up_once(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source)
    (first,) = await used(store, VISUAL)
    await store.reload_replaced()
    assert store.generation(VISUAL) == 0
    for generation in (1, 2):
        replace(source, VISUAL)
        await store.reload_replaced()
        await store.reload_replaced()
        assert store.generation(VISUAL) == generation
        assert len(runtime.opened) == 1 + generation
    (now,) = await used(store, VISUAL)
    assert now is not first
    assert store.generation(TEXTUAL) == 0


async def test_a_model_that_was_replaced_when_it_was_not_loaded_is_another_too(
    runtime: Counting, source: Folder
) -> None:
    store = make(runtime, source)
    await used(store, VISUAL)
    await store.drop_unused()
    replace(source, VISUAL)
    await store.reload_replaced()
    assert (store.generation(VISUAL), len(runtime.opened)) == (1, 1)
    await store.drop_unused()
    replace(source, VISUAL)
    await used(store, VISUAL)
    assert store.generation(VISUAL) == 2
    await store.reload_replaced()
    assert (store.generation(VISUAL), len(runtime.opened)) == (2, 2)


async def test_a_model_of_which_a_file_is_gone_stays_as_it_is(runtime: Counting, source: Folder) -> None:
    store = make(runtime, source)
    await used(store, VISUAL)
    (VISUAL.ref.folder(source.cache) / "config.json").unlink()
    await store.reload_replaced()
    assert (store.generation(VISUAL), len(runtime.opened)) == (0, 1)


async def test_a_replaced_model_that_is_no_good_leaves_the_one_that_is_loaded(
    runtime: Counting, tmp_path: Path
) -> None:
    source = Folder(tmp_path, can_mend=False)
    store = make(runtime, source)
    (first,) = await used(store, VISUAL)
    replace(source, VISUAL, b"half")
    tried = len(source.fetched)
    for _ in range(2):
        await store.reload_replaced()
        assert await used(store, VISUAL) == [first]
    assert store.generation(VISUAL) == 0
    assert len(source.fetched) == tried + 1


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


# models that are prepared


class Preparing(Counting):
    """Notes what it is asked to prepare."""

    def __init__(self, *, can: bool = True) -> None:
        super().__init__()
        self.can = can
        self.asked: list[tuple[Path, Sequence[int]]] = []
        self.trimmed = 0
        self.then: Callable[[], object] = lambda: None

    def prepare(self, model: Path, shape: Sequence[int]) -> bool:
        self.asked.append((model, shape))
        self.then()
        return self.can

    def trim_memory(self) -> None:
        self.trimmed += 1


async def test_all_that_is_loaded_is_prepared_once_and_opened_again(source: Folder) -> None:
    runtime = Preparing()
    store = make(runtime, source)
    (visual,) = await used(store, VISUAL)
    await store.prepare()
    assert runtime.asked == [(VISUAL.ref.path(source.cache), visual.example_shape)]
    assert (len(runtime.opened), runtime.trimmed) == (2, 1)
    (now,) = await used(store, VISUAL)
    assert now is not visual
    await used(store, TEXTUAL)
    await store.prepare()
    await store.prepare()
    assert [path for path, _ in runtime.asked] == [key.ref.path(source.cache) for key in (VISUAL, TEXTUAL)]
    await store.reload_replaced()
    assert store.generation(VISUAL) == 0


async def test_what_cannot_be_prepared_stays_as_it_is_and_is_not_tried_again(source: Folder) -> None:
    runtime = Preparing(can=False)
    store = make(runtime, source)
    await used(store, VISUAL)
    await store.prepare()
    await store.prepare()
    assert len(runtime.asked) == len(runtime.opened) == 1


async def test_a_model_that_is_dropped_while_it_is_prepared_is_not_loaded_for_that(source: Folder) -> None:
    runtime = Preparing()
    store = make(runtime, source)
    await used(store, VISUAL)
    runtime.then = store._entries.clear
    await store.prepare()
    assert store.loaded == []
    assert len(runtime.opened) == 1


# what is done when: by a clock that jumps, and with models that are none


class DoneError(Exception):
    """So long was long enough."""


class Watched(Store):
    """Notes what is to be done, and when, and does nothing of it, until so many seconds have passed."""

    def __init__(self, ttl: float | None, *, holds_a_device: bool = False, seconds: float = 40) -> None:
        runtime = cast(OrtRuntime, SimpleNamespace(holds_a_device=holds_a_device))
        super().__init__(runtime, cast(Loader, None), ttl, restart=lambda: self.note("restart"))
        self.seconds = seconds
        self.done: list[tuple[str, float]] = []
        self.now: Callable[[], float] = lambda: 0.0
        self._last_use = START

    def note(self, what: str) -> None:
        self.done.append((what, self.now()))

    def at(self, what: str) -> list[float]:
        return [when for noted, when in self.done if noted == what]

    def holds(self, key: ModelKey[Any], *, users: int = 0, used: float = 0, is_settled: bool = True) -> None:
        """A model that was loaded at the start, and used last so many seconds after it."""
        entry = Entry(key, cast(Loaded[Any], None), users, START, START + used, is_settled)
        self._entries[key.ref] = entry

    async def reload_replaced(self) -> None:
        self.note("look")
        if self.now() >= self.seconds:
            raise DoneError

    async def prepare(self) -> None:
        self.note("prepare")
        for entry in self._entries.values():
            entry.is_settled = True

    async def drop_idle(self, seconds: float) -> None:
        self.note(f"drop what is idle for {seconds:g} s")

    def _trim_memory(self, dropped: object = None) -> None:
        self.note("trim")


START = 1000.0


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Callable[[Watched], Watched]:
    """Has a store's maintenance run by a clock that jumps."""

    def run(store: Watched) -> Watched:
        async def maintenance() -> None:
            store.now = asyncio.get_running_loop().time
            monkeypatch.setattr(store_module, "time", SimpleNamespace(monotonic=lambda: START + store.now()))
            with contextlib.suppress(DoneError):
                await store.run_maintenance()

        clock.run(maintenance())
        return store

    return run


Hurried = Callable[[Watched], Watched]


@pytest.mark.parametrize(
    ("ttl", "on_a_device", "looks", "drop"),
    [
        (0, False, [5, 10, 15], None),
        (4, False, [2, 4, 6, 8, 10, 12, 14, 16], 4),
        (60, False, [5, 10, 15], 60),
        (None, False, [5, 10, 15], 60),
        (None, True, [5, 10, 15], 300),
    ],
)
def test_it_looks_twice_in_the_time_of_an_idle_model_and_every_five_seconds_at_least(
    hurried: Hurried, ttl: float | None, on_a_device: bool, looks: list[float], drop: float | None
) -> None:
    store = Watched(ttl, holds_a_device=on_a_device, seconds=15)
    store.holds(VISUAL, users=1)
    done = hurried(store).done
    assert store.at("look") == looks
    assert {what for what, _ in done} - {"look"} == ({f"drop what is idle for {drop} s"} if drop else set())


@pytest.mark.parametrize(("used", "when"), [(0, 5), (1, 10)])
def test_models_are_prepared_after_five_seconds_without_a_request(hurried: Hurried, used: float, when: float) -> None:
    store = Watched(0)
    store.holds(VISUAL, used=used, is_settled=False)
    store.holds(TEXTUAL)
    assert hurried(store).at("prepare") == [when]


def test_where_there_is_no_such_pause_they_are_after_ten_minutes(hurried: Hurried) -> None:
    store = Watched(0, seconds=700)
    store.holds(VISUAL, is_settled=False)
    store.holds(TEXTUAL, users=1)
    assert hurried(store).at("prepare") == [605]


@pytest.mark.parametrize(("used", "when"), [(0, 5), (2, 10), (8, 15)])
def test_what_photos_left_is_given_back_once_in_a_pause(hurried: Hurried, used: float, when: float) -> None:
    store = Watched(0)
    store.holds(VISUAL, used=used)
    assert hurried(store).at("trim") == [when]


def test_where_nothing_was_asked_for_there_is_nothing_to_be_given_back(hurried: Hurried) -> None:
    assert hurried(Watched(0)).at("trim") == []


def test_a_process_that_holds_a_device_starts_afresh_when_nothing_was_used_for_its_time(hurried: Hurried) -> None:
    store = hurried(Watched(4, holds_a_device=True))
    assert store.at("restart") == [4]
    assert store.at("look") == [2, 4]
    assert hurried(Watched(4)).at("restart") == []
    loading = Watched(4, holds_a_device=True)
    loading._loading[VISUAL.ref] = cast(Any, None)
    assert hurried(loading).at("restart") == []
