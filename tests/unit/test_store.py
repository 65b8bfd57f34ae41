# SPDX-License-Identifier: AGPL-3.0-only
"""The store of loaded models: one load for all requests, idle models unloaded, replaced files loaded."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from demo.models import build_faces
from inside import eventually
from model_folder import DETECTION, TEXTUAL, VISUAL, Folder
from mt_photos_ml.models.loader import Loaded, Loader, ModelKey, ModelUnavailable, T
from mt_photos_ml.models.progress import ModelState
from mt_photos_ml.models.store import Store
from mt_photos_ml.runtime import Session
from mt_photos_ml.runtime.devices import Devices
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.runtime.scheduler import CpuScheduler

pytestmark = pytest.mark.anyio
Log = pytest.LogCaptureFixture
NO_MIRROR = "clip/mine/visual can't be downloaded: no mirror answers"


class OneAtATime(OrtRuntime):
    def __init__(self) -> None:
        super().__init__(threads=1)
        self._turn = threading.Lock()

    def open(self, model: Path) -> Session:
        assert self._turn.acquire(blocking=False), "two loads at a time"
        time.sleep(0.05)
        self._turn.release()
        return super().open(model)


@pytest.fixture
def source(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def make(source: Folder, ttl: float | None = 0, **given: Any) -> Store:
    loader = Loader(given.pop("runtime", None) or OneAtATime(), source, CpuScheduler(1))
    return Store(loader, given.pop("devices", Devices()), ttl, **{"recent_seconds": 0, **given})


async def take(store: Store, key: ModelKey[T]) -> T:
    async with store.use(key) as model:
        return model


@contextlib.asynccontextmanager
async def maintained(store: Store) -> AsyncIterator[Store]:
    task = asyncio.create_task(store.run_maintenance())
    yield store
    task.cancel()


async def test_requests_share_one_load_and_models_load_one_at_a_time(source: Folder) -> None:
    store = make(source)
    others = asyncio.gather(*(take(store, DETECTION) for _ in range(20)))  # the runtime fails if two loads overlap
    models = await asyncio.gather(*(take(store, VISUAL) for _ in range(20)))
    await others
    assert len({id(model) for model in models}) == 1
    assert store.loaded == ["clip/mine/visual", "facial-recognition/mine/detection"]
    assert len(source.fetched) == 2


async def test_a_download_does_not_delay_another_model(source: Folder) -> None:
    store = make(source, preloaded=[VISUAL], patience_seconds=0.05)
    build_faces(DETECTION.ref.folder(source.cache))
    source.seconds = 2.0
    downloading = asyncio.create_task(store.preload())  # preloading has no time limit
    await eventually(lambda: store.state(VISUAL.ref).name == "downloading")
    source.seconds = 0.0
    await store.load(DETECTION)
    assert not downloading.done()
    with pytest.raises(ModelUnavailable, match=r"^clip/mine/visual is still being downloaded$"):
        await take(store, VISUAL)
    await downloading
    await take(store, VISUAL)
    assert len(source.fetched) == 2


async def test_a_failed_load_is_logged_once_even_if_no_request_waits_any_more(source: Folder, caplog: Log) -> None:
    source.seconds, source.failure = 0.3, "no mirror answers"
    store = make(source, patience_seconds=0.05)
    with pytest.raises(ModelUnavailable, match="still being downloaded"):
        await take(store, VISUAL)
    await eventually(lambda: store.state(VISUAL.ref) == ModelState("failed", error=NO_MIRROR))
    await asyncio.sleep(0)
    gc.collect()  # asyncio would log an exception that was never retrieved
    assert caplog.messages == [NO_MIRROR]


async def test_a_failure_is_remembered_for_a_while(source: Folder) -> None:
    class HastyLoader(Loader):
        async def load(self, key: ModelKey[T], again: bool = True) -> Loaded[T]:
            try:
                return await super().load(key, again)
            except ModelUnavailable as failure:
                raise ModelUnavailable(str(failure), retry_after=0.6) from failure

    store = Store(HastyLoader(OrtRuntime(1), source, CpuScheduler(1)), Devices(), 0)
    source.failure = "no mirror answers"
    for _ in range(3):
        with pytest.raises(ModelUnavailable, match=NO_MIRROR) as raised:
            await take(store, VISUAL)
    assert 0 < raised.value.retry_after < 0.6
    assert len(source.fetched) == 1
    source.failure = ""
    await eventually(lambda: store.state(VISUAL.ref) == ModelState("not loaded"))
    await take(store, VISUAL)


@pytest.mark.parametrize("ask", [Store.load, Store.pull])
async def test_a_users_load_or_pull_is_tried_at_once_after_a_failure(source: Folder, ask: Callable[..., Any]) -> None:
    store = make(source)
    source.failure = "no mirror answers"
    for _ in range(2):
        with pytest.raises(ModelUnavailable, match=NO_MIRROR):
            await ask(store, VISUAL)
    source.failure = ""
    await ask(store, VISUAL)
    assert len(source.fetched) == 3
    await take(store, VISUAL)


async def test_the_state_of_a_model_is_known(source: Folder) -> None:
    may_open = threading.Event()

    class HeldRuntime(OneAtATime):
        def open(self, model: Path) -> Session:
            assert may_open.wait(10)
            return super().open(model)

    store = make(source, runtime=HeldRuntime(), patience_seconds=0.05)
    source.seconds = 0.3
    assert store.state(VISUAL.ref) == ModelState("not loaded")
    loading = asyncio.create_task(store.load(VISUAL))
    for name in ("downloading", "loading"):
        await eventually(lambda name=name: store.state(VISUAL.ref) == ModelState(name))  # type: ignore[misc]
    with pytest.raises(ModelUnavailable, match=r"^clip/mine/visual is still being loaded$"):
        await take(store, VISUAL)
    may_open.set()
    await loading
    async with store.use(VISUAL):
        state = store.state(VISUAL.ref)
        assert (state.name, state.idle) == ("in use", None)
    await asyncio.sleep(0.2)
    state = store.state(VISUAL.ref)
    assert state.name == "ready"
    assert 0.2 <= (state.idle or 0) < 10
    assert store.state(TEXTUAL.ref) == ModelState("not loaded")


async def test_a_model_stays_until_its_last_user_has_finished(source: Folder) -> None:
    store = make(source)
    async with store.use(VISUAL):
        await take(store, VISUAL)
        await store.drop_idle(0)
        assert await store.drop_unused() == []
        assert await store.unload(VISUAL) is False
        assert store.loaded == ["clip/mine/visual"]
    assert await store.drop_unused() == ["clip/mine/visual"]
    assert await store.unload(VISUAL) is True


async def test_dropping_unused_models_keeps_recently_used_ones(source: Folder) -> None:
    store = make(source, recent_seconds=0.5, preloaded=[TEXTUAL])
    for key in (VISUAL, TEXTUAL, VISUAL):  # the third takes no time, so both were just used
        await take(store, key)
    assert await store.drop_unused() == []
    await asyncio.sleep(0.6)
    await take(store, VISUAL)
    assert await store.drop_unused() == ["clip/mine/textual"]
    assert store.loaded == ["clip/mine/visual"]


async def test_an_idle_model_is_dropped_and_loaded_again_when_needed(source: Folder) -> None:
    async with maintained(make(source, ttl=1.0)) as store:
        for times in (1, 2):
            await take(store, VISUAL)
            used = time.monotonic()
            assert len(source.fetched) == times
            await eventually(lambda: not store.loaded)
            assert time.monotonic() >= used + 1.0


async def test_preloaded_models_stay_when_idle_and_a_failure_of_one_leaves_the_others(source: Folder) -> None:
    store = make(source, preloaded=[TEXTUAL, VISUAL])
    source.fetch(TEXTUAL.ref).write_bytes(b"half")
    source.can_mend = False
    await store.preload()
    assert store.loaded == ["clip/mine/visual"]
    await take(store, DETECTION)
    await store.drop_idle(0)
    assert store.loaded == ["clip/mine/visual"]
    assert await store.drop_unused() == ["clip/mine/visual"]


@pytest.mark.parametrize(
    ("ttl", "holds_memory", "seconds"), [(0, True, 0), (7, True, 7), (None, False, 60), (None, True, 300)]
)
async def test_idle_models_are_kept_longer_on_a_card(
    source: Folder, ttl: float | None, holds_memory: bool, seconds: float
) -> None:
    devices = Devices()
    devices.holds_memory = holds_memory
    assert make(source, ttl, devices=devices).ttl_seconds == seconds


async def test_maintenance_goes_on_after_an_unexpected_error(source: Folder, caplog: Log) -> None:
    def fail(model: Path, shape: Sequence[int]) -> bool:
        raise RuntimeError("out of the blue")

    async with maintained(make(source, ttl=0.2, prepare=fail, pause_seconds=0.05)) as store:
        await take(store, VISUAL)
        await eventually(lambda: not store.loaded)
    assert "out of the blue" in caplog.text


@pytest.mark.parametrize("case", ["card", "card with a preloaded model", "processor"])
async def test_only_an_idle_process_that_holds_a_cards_memory_is_restarted(source: Folder, case: str) -> None:
    devices, restarts = Devices(), list[list[str]]()
    preloaded = [VISUAL] if "preloaded" in case else []
    store: Store = make(
        source, 0.2, devices=devices, preloaded=preloaded, restart=lambda: restarts.append(store.loaded)
    )
    async with maintained(store):
        async with store.use(VISUAL):
            devices.holds_memory = "card" in case
            await asyncio.sleep(0.5)
            assert not restarts, "the model is in use"
        if case == "card":
            await eventually(lambda: restarts == [[]])
        else:
            await asyncio.sleep(0.8)
            assert restarts == []


def replace(source: Folder, key: ModelKey[Any], content: bytes = b"") -> None:
    """Replaces the model file by another, by default of the same content."""
    model = key.ref.path(source.cache)
    other = model.with_suffix(".new")
    other.write_bytes(content or model.read_bytes())
    other.replace(model)


async def test_replaced_files_are_loaded_on_request_even_if_the_model_is_in_use(source: Folder) -> None:
    store = make(source)
    assert store.stamp(VISUAL) is None
    async with store.use(VISUAL) as first:
        stamp = store.stamp(VISUAL)
        await store.drop_unused()
        assert (await take(store, VISUAL), store.stamp(VISUAL)) == (first, stamp), "nothing was replaced"
        replace(source, VISUAL)
        assert await take(store, VISUAL) is first
        await store.drop_unused()
        assert await take(store, VISUAL) is not first
        assert (second := store.stamp(VISUAL)) not in (stamp, None)
    assert len(source.fetched) == 2
    await store.drop_idle(0)
    assert store.stamp(VISUAL) == second, "cached texts stay valid when an idle model is unloaded"
    await take(store, VISUAL)
    await store.unload(VISUAL)
    assert store.stamp(VISUAL) is None


@pytest.mark.parametrize("harm", ["half-copied", "share gone", "damaged"])
async def test_a_model_in_use_stays_if_its_replacement_is_incomplete_or_damaged(source: Folder, harm: str) -> None:
    store, folder = make(source), VISUAL.ref.folder(source.cache)
    source.can_mend = False
    async with store.use(VISUAL) as model:
        stamp = store.stamp(VISUAL)
        replace(source, VISUAL, b"half" if harm == "damaged" else b"")
        if harm != "damaged":
            (folder if harm == "share gone" else folder / "config.json").rename(source.cache / "away")
        await store.drop_unused()
        assert (await take(store, VISUAL), store.stamp(VISUAL)) == (model, stamp)
    assert len(source.fetched) == 1 + (harm == "damaged")


class Preparation:
    """Records the models that it is asked to prepare, waits for `may_end`, and returns whether it succeeds."""

    def __init__(self, *, succeeds: bool = True) -> None:
        self.succeeds, self.asked, self.may_end = succeeds, list[tuple[Path, Sequence[int]]](), threading.Event()
        self.may_end.set()

    def __call__(self, model: Path, shape: Sequence[int]) -> bool:
        self.asked.append((model, shape))
        return self.may_end.wait(60) and self.succeeds


@pytest.mark.parametrize("succeeds", [True, False])
async def test_a_loaded_model_is_prepared_once_and_then_opened_again(source: Folder, succeeds: bool) -> None:
    preparation = Preparation(succeeds=succeeds)
    store = make(source, prepare=preparation)
    async with store.use(VISUAL) as model:
        await store.prepare()
        await store.prepare()
        assert preparation.asked == [(VISUAL.ref.path(source.cache), model.example_shape)]
        assert (await take(store, VISUAL) is not model) == succeeds
        assert len(source.fetched) == 1 + succeeds
        replace(source, VISUAL)
        await store.drop_unused()
        await store.prepare()
        assert len(preparation.asked) == 2, "the replacement is another model"


async def test_a_model_that_is_dropped_during_its_preparation_is_not_opened_again(source: Folder) -> None:
    store = make(source, prepare=(preparation := Preparation()))
    await take(store, VISUAL)
    preparation.may_end.clear()
    preparing = asyncio.create_task(store.prepare())
    await eventually(lambda: bool(preparation.asked))
    await store.drop_unused()
    preparation.may_end.set()
    await preparing
    assert store.loaded == []
    assert len(source.fetched) == 1


@pytest.mark.parametrize(("max_delay_seconds", "while_in_use"), [(60, False), (0.2, True)])
async def test_models_are_prepared_in_a_pause_or_after_the_longest_delay(
    source: Folder, max_delay_seconds: float, while_in_use: bool
) -> None:
    preparation = Preparation()
    store = make(source, prepare=preparation, pause_seconds=0.1, max_delay_seconds=max_delay_seconds)
    async with maintained(store):
        async with store.use(VISUAL):
            if while_in_use:
                await eventually(lambda: bool(preparation.asked))
            else:
                await asyncio.sleep(0.8)
                assert not preparation.asked
        await eventually(lambda: bool(preparation.asked))
        assert store.loaded == ["clip/mine/visual"], "with a TTL of 0 nothing is dropped"
