# SPDX-License-Identifier: AGPL-3.0-only
"""Prepared models: written once, same answers, written again if anything changes, not used if that fails."""

import fcntl
import json
import logging
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from demo.graph import Graph
from mt_photos_ml.models.catalog import OCR, ModelRef
from mt_photos_ml.models.sources import file_in_wheel
from mt_photos_ml.runtime import Session
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.runtime.prepared import write
from mt_photos_ml.runtime.prepared.fingerprint import fingerprint
from mt_photos_ml.runtime.prepared.layout import ALIGNMENT_BYTES, align
from mt_photos_ml.runtime.prepared.runtime import PreparedRuntime, find_stale
from mt_photos_ml.runtime.prepared.write import PrepareError, check_answer
from service import until

Log = pytest.LogCaptureFixture
Patch = pytest.MonkeyPatch
Writer = Callable[[str], None]
SHAPE = (1, 64)
FEED = {"x": np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)}


class Recording:
    """onnxruntime, recording the files that it opens. error: raised when the first prepared form is opened."""

    def __init__(self, device: str = "CPU", error: Exception | None = None) -> None:
        self.device, self.error, self.opened = device, error, list[Path]()

    def runs_on(self, model: Path) -> str:
        return self.device

    def open(self, model: Path) -> Session:
        self.opened.append(model)
        if self.error and "prepared" in model.parts:
            error, self.error = self.error, None
            raise error
        return OrtRuntime(1).open(model)


@pytest.fixture(scope="module")
def prepared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a network of 2 MB and its prepared form."""
    cache = tmp_path_factory.mktemp("cache")
    model = cache / "clip" / "mine" / "visual" / "model.onnx"
    build(model)
    prepared(model)
    return cache


@pytest.fixture
def folder(prepared_cache: Path, tmp_path: Path) -> Path:
    """The folder of the prepared form of `model`."""
    shutil.copytree(prepared_cache, tmp_path, dirs_exist_ok=True)
    (folder,) = folders(tmp_path / "clip" / "mine" / "visual" / "model.onnx")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model in the cache `tmp_path`; it is prepared only if the test uses `folder` too."""
    path = tmp_path / "clip" / "mine" / "visual" / "model.onnx"
    if not path.exists():
        build(path)
    return path


def build(path: Path, seed: int = 0, kind: int = TensorProto.FLOAT, shape: Sequence[int | str] = ("n", "any")) -> None:
    """Writes a network of 2 MB, whose dimension `any` must be 64."""
    random, graph = np.random.default_rng(seed), Graph()
    hidden = graph("Relu", graph("MatMul", graph("Cast", "x", to=TensorProto.FLOAT), random.normal(size=(64, 4096))))
    graph("MatMul", hidden, random.normal(size=(4096, 64)), out="y")
    graph.save(path, {"x": list(shape)}, {"y": list(shape)}, kind)


def prepared(model: Path, runtime: Recording | None = None, threads: int = 1, cache: Path | None = None) -> Session:
    """Opens the model as a new process does: as it is, then, once it is written, its prepared form."""
    runtime = runtime or Recording()
    preparing = PreparedRuntime(runtime, runtime, cache or model.parents[3], threads)
    session = preparing.open(model)
    return preparing.open(model) if preparing.prepare(model, SHAPE) else session


def files_opened(model: Path, runtime: Recording | None = None, cache: Path | None = None) -> list[Path]:
    runtime = runtime or Recording()
    prepared(model, runtime, cache=cache)
    return runtime.opened


def folders(model: Path) -> list[Path]:
    """The folders of the prepared forms of a model."""
    return sorted(path for path in (model.parent / "prepared").glob("[!.]*") if path.is_dir())


def test_the_prepared_form_is_written_once_and_answers_bit_for_bit_like_the_original(
    model: Path, monkeypatch: Patch
) -> None:
    synced = list[Path]()
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink()))
    opened = files_opened(model)
    (folder,) = folders(model)
    assert opened == [model, folder / "model.onnx"]
    assert {path.name for path in synced} == {path.name for path in folder.iterdir()}
    assert folder not in {path.parent for path in synced}, "files are synced before the folder is renamed"
    written = (folder / "record.json").stat()
    runtime = Recording()
    np.testing.assert_array_equal(prepared(model, runtime).run(FEED)[0], OrtRuntime(1).open(model).run(FEED)[0])
    assert runtime.opened == [folder / "model.onnx"]
    assert (folder / "record.json").stat() == written
    assert (folder / "weights.bin").stat().st_size > 2_000_000
    assert (folder / "model.onnx").stat().st_size < 100_000
    assert folder.stat().st_mode & 0o777 == 0o755, "other users of the cache can read it"


def test_the_session_for_one_thread_opens_the_same_files_at_its_first_use(model: Path, folder: Path) -> None:
    runtime = Recording()
    session = prepared(model, runtime, threads=2)
    assert runtime.opened == [folder / "model.onnx"]
    assert session.choose(FEED, is_busy=False) is session
    one = session.choose(FEED, is_busy=True)
    assert one is not session
    assert session.choose(FEED, is_busy=True) is one
    assert runtime.opened == [folder / "model.onnx"] * 2
    np.testing.assert_array_equal(one.run(FEED)[0], session.run(FEED)[0])
    other = prepared(model, threads=2)
    shutil.rmtree(folder)
    assert other.choose(FEED, is_busy=True) is other
    assert len(other.run(FEED)) == 1


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.INT64, "int64"), (TensorProto.FLOAT16, "float16")])
def test_a_prepared_form_is_tried_with_the_models_own_shape_and_type(tmp_path: Path, kind: int, dtype: str) -> None:
    build(tmp_path / "model.onnx", kind=kind, shape=(2, "free"))
    (half := tmp_path / "half").mkdir()
    write.prepare(tmp_path / "model.onnx", half, 1, (1, 64))
    with np.load(half / "tried.npz") as example:
        values = example["in x"]
        assert (example.files, values.shape, values.dtype) == (["in x", "out 0"], (2, 64), dtype)
    assert len(np.unique(values)) == 2 if "int" in dtype else len(np.unique(values)) > 100


@pytest.mark.parametrize(
    ("answers", "is_right"),
    [([[1000.5]], True), ([[1003]], False), ([[np.nan]], False), ([[[1000]]], False), ([[1000], [1000]], False)],
)
def test_answers_may_differ_only_by_rounding(tmp_path: Path, answers: list[Any], is_right: bool) -> None:
    arrays: dict[str, Any] = {"in x": np.zeros(1), "out 0": np.array([1000], "f4")}
    np.savez(tmp_path / "tried.npz", **arrays)
    session = cast(Session, SimpleNamespace(run=lambda feed: [np.array(a, "f4") for a in answers]))
    with nullcontext() if is_right else pytest.raises(ValueError, match="answers differ"):
        check_answer(session, tmp_path)


def test_a_prepared_form_that_answers_differently_is_not_kept(tmp_path: Path, model: Path, monkeypatch: Patch) -> None:
    def spoil(model: Path, weights: Path) -> None:
        weights.write_bytes(bytes(weights.stat().st_size))

    monkeypatch.setattr(write, "align", spoil)
    with pytest.raises(PrepareError, match=r"^the prepared model's answers differ from the original's$"):
        write.prepare(model, tmp_path, 1, SHAPE)


def test_all_weights_of_a_prepared_model_are_aligned(tmp_path: Path) -> None:
    """The recogniser has regions of odd lengths; onnxruntime 1.31 crashed on its own file for it."""
    model, weights = tmp_path / "model.onnx", tmp_path / "weights.bin"
    carried = file_in_wheel(ModelRef(OCR, "PP-OCRv6_small", "recognition"))
    assert carried
    write.prepare(carried, tmp_path, 1, (1, 3, 48, 320), min_mapped_bytes=1024)
    regions = list[tuple[int, int]]()
    for tensor in onnx.load(model, load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        packed = [part.split(";") for key in entries if "prepacked" in key for part in entries[key].split("|")[1:]]
        plain = [[entries["offset"], entries["length"]]] if "offset" in entries else []
        regions += [(int(offset), int(length)) for offset, length, *_ in plain + packed]
    assert len(regions) > 10
    assert [offset for offset, _ in regions if offset % ALIGNMENT_BYTES] == []
    before = weights.stat()
    align(model, weights)
    assert weights.stat() == before, "aligned weights are not written again"
    feed = {"x": np.random.default_rng(0).normal(size=(2, 3, 48, 480)).astype(np.float32)}
    original, ours = (OrtRuntime(1).open(path) for path in (carried, model))
    assert original.metadata == ours.metadata
    np.testing.assert_array_equal(original.run(feed)[0], ours.run(feed)[0])


@pytest.mark.usefixtures("folder")
def test_small_models_models_outside_the_cache_and_models_on_a_card_are_not_prepared(
    tmp_path: Path, model: Path
) -> None:
    assert files_opened(model, cache=tmp_path / "elsewhere") == [model]
    small = tmp_path / "clip" / "small" / "visual" / "model.onnx"
    graph = Graph()
    graph("Relu", "x", out="y")
    graph.save(small, {"x": [1, 4]}, {"y": [1, 4]})
    assert files_opened(small) == [small]
    assert files_opened(model, Recording("CUDA")) == [model]


@pytest.mark.parametrize("other", ["model", "weights", "onnxruntime", "processor", "architecture"])
def test_with_another_model_onnxruntime_or_processor_it_is_written_again(
    model: Path, folder: Path, other: str, monkeypatch: Patch
) -> None:
    assert find_stale(model.parents[1]) == []
    (model.parent / "config.json").touch()
    assert files_opened(model) == [folder / "model.onnx"], "config.json has no weights"
    match other:
        case "model":
            build(model, seed=1)
        case "weights":
            (model.parent / "weights").touch()
        case "onnxruntime":
            monkeypatch.setattr(onnxruntime, "__version__", "0")
        case "processor":
            read = Path.read_text
            monkeypatch.setattr(Path, "read_text", lambda path: read(path) + "flags : x\n" * (path.name == "cpuinfo"))
        case "architecture":
            monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    opened = files_opened(model)
    (new,) = set(folders(model)) - {folder}
    assert opened == [model, new / "model.onnx"]
    assert find_stale(model.parents[1]) == [folder]


def test_fingerprints_match_those_on_the_disks_of_users(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content, expected in ((bytes(range(256)) * 4096, "f446d798c07d499f"), (b"small", "9061398076a5d61b")):
        path.write_bytes(content)
        assert fingerprint(path) == [len(content), expected]


def test_stale_folders_are_found_and_old_unfinished_ones_are_removed(model: Path) -> None:
    textual = model.parents[1] / "textual" / "model.onnx"
    build(textual)
    stale = [at / "prepared" / name for at in (textual.parent, model.parent) for name in (".half", "0123")]
    partial, gone = textual.parent / ".int8.partial", model.parents[1] / "gone" / "prepared" / "0123"
    being_written = [textual.parent / "prepared" / ".new", model.parent / ".int8.partial"]
    for minutes, paths in ((61, [partial, gone, *stale]), (59, being_written)):
        for path in paths:
            path.mkdir(parents=True)
            os.utime(path, (time.time() - minutes * 60,) * 2)
    assert find_stale(model.parents[1]) == [partial, gone, *stale]
    prepared(textual)
    assert find_stale(model.parents[1]) == [partial, gone, *stale[1:]]
    assert being_written[0].exists()


@pytest.mark.parametrize(
    ("file", "harm", "reason"),
    [
        ("model.onnx", "other", "a file has changed"),
        ("weights.bin", "shorter", "a file has changed"),
        ("weights.bin", "unseen", "its answers differ from the original's"),
        ("weights.bin", "gone", "No such file"),
        ("tried.npz", "gone", "No such file"),
        ("record.json", "shorter", ""),
    ],
)
def test_a_damaged_form_is_removed_and_written_again(
    model: Path, folder: Path, file: str, harm: str, reason: str, caplog: Log
) -> None:
    content = (folder / file).read_bytes()
    damaged = {"other": b"?" * 100 + content[100:], "shorter": content[:-1], "unseen": bytes(len(content))}
    if harm == "gone":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(damaged[harm])
    if harm == "unseen":
        record = json.loads((folder / "record.json").read_text())
        (folder / "record.json").write_text(json.dumps({**record, file: fingerprint(folder / file)}))
    assert files_opened(model)[-2:] == [model, folder / "model.onnx"]
    assert (folder / file).stat().st_size == len(content)
    assert not reason or (f"deleted the damaged prepared model {folder}: " in caplog.text and reason in caplog.text)


def test_a_form_that_cannot_be_opened_is_written_again_unless_memory_ran_out(
    model: Path, folder: Path, caplog: Log
) -> None:
    with pytest.raises(MemoryError):
        prepared(model, Recording(error=MemoryError()))
    assert (folder / "weights.bin").is_file()
    prepared(model, Recording(error=OSError("no\nway")))
    assert caplog.messages == [f"deleted the damaged prepared model {folder}: no"]
    assert folders(model) == [folder]


AS_IT_IS = "clip/mine/visual is not prepared and takes more memory and time to load"
NEVER = "clip/mine/visual can't be prepared and takes more memory and time to load"


@pytest.mark.parametrize("is_full", [True, False])
def test_a_prepared_form_that_cannot_be_written_is_logged_once(
    model: Path, is_full: bool, caplog: Log, monkeypatch: Patch
) -> None:
    if is_full:
        free = int(2.2 * model.stat().st_size) - 1
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    else:
        (model.parent / "prepared").touch()  # in the way of the folder, even for root
    runtime = Recording()
    preparing = PreparedRuntime(runtime, runtime, model.parents[3], 1)
    for _ in range(3):
        preparing.open(model)
        assert not preparing.prepare(model, SHAPE)
    assert (runtime.opened, folders(model)) == ([model] * 3, [])
    (line,) = caplog.messages
    assert line.startswith(AS_IT_IS)
    assert not is_full or line.endswith("prepared has 4 MB free, 4 MB are needed")


def test_a_model_that_can_never_be_prepared_is_tried_once(model: Path, caplog: Log) -> None:
    build(model, kind=TensorProto.INT8)
    for _ in range(2):
        assert files_opened(model) == [model]
    assert caplog.messages == [f"{NEVER}: its input x is a tensor(int8)"]


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: Patch) -> Writer:
    """Replaces Python by a shell script."""

    def replace(script: str) -> None:
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return replace


@pytest.mark.parametrize(
    ("script", "line", "is_final"),
    [
        ("echo one >&2; echo two >&2; exit 3", f"{AS_IT_IS}: two", False),
        ("kill -9 $$", f"{AS_IT_IS}: there was not enough memory to prepare it", False),
        ("kill -SEGV $$", f"{NEVER}: the attempt crashed", True),
        ("kill -ILL $$", f"{NEVER}: the attempt ended with status -4", True),
    ],
)
def test_a_failed_preparation_is_logged_and_tried_again_if_that_may_help(
    model: Path, writer: Writer, caplog: Log, script: str, line: str, is_final: bool
) -> None:
    for _ in range(2):
        writer(f"touch $4/half; {script}")
        assert files_opened(model) == [model]
    assert caplog.messages == [line] * (1 if is_final else 2)
    assert [[path.name for path in folder.iterdir()] for folder in folders(model)] == [["record.json"]] * is_final


def test_closing_ends_the_preparation_process(model: Path, writer: Writer, caplog: Log) -> None:
    runtime, pid = Recording(), model.with_name("pid")
    preparing = PreparedRuntime(runtime, runtime, model.parents[3], 1)
    preparing.open(model)
    writer(f"echo $$ > {pid}; exec sleep 60")
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(preparing.prepare, model, SHAPE)
        until(lambda: pid.is_file() and bool(pid.read_text()))
        preparing.close()
        assert ended.result(30) is False
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert (caplog.messages, folders(model)) == ([], [])
    build(model, seed=1)
    preparing.open(model)
    assert not preparing.prepare(model, SHAPE), "nothing starts after close"


def test_the_preparation_process_has_low_priority_for_processor_and_memory(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")  # the process waits for its content
    arguments = [str(tmp_path / "model.onnx"), str(tmp_path), "1", "1x64"]
    with subprocess.Popen([sys.executable, "-m", "mt_photos_ml.runtime.prepared.write", *arguments]) as process:
        try:
            until(lambda: os.getpriority(os.PRIO_PROCESS, process.pid) == 19)
            until(lambda: Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000")
        finally:
            process.kill()


def prepare_in_a_process(cache: Path, model: Path, has_locks: bool) -> None:
    logging.basicConfig(filename=cache / "log", level="INFO")
    if not has_locks:  # as on some network shares
        fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError("no locks"))
    assert files_opened(model)[-1] == folders(model)[0] / "model.onnx"


@pytest.mark.parametrize("has_locks", [True, False])
def test_one_of_two_processes_writes_and_without_locks_the_result_is_complete(
    tmp_path: Path, model: Path, has_locks: bool
) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(prepare_in_a_process, [(tmp_path, model, has_locks)] * 2)
    times = (tmp_path / "log").read_text().count("prepared clip/mine/visual in")
    assert times == 1 or (not has_locks and times <= 2)
    assert len(folders(model)) == 1
    assert list((model.parent / "prepared").glob(".*/")) == []
