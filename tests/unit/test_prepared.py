# SPDX-License-Identifier: AGPL-3.0-only
"""Prepared models: made once, the same answers, made again when anything differs, done without where they can't be."""

import fcntl
import json
import logging
import mmap
import multiprocessing
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from mt_photos_ml.runtime import RuntimeSession
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.runtime.prepared import fingerprint, layout
from mt_photos_ml.runtime.prepared import runtime as prepared
from mt_photos_ml.runtime.prepared import write as prepare
from mt_photos_ml.runtime.prepared.runtime import PreparedModels, find_stale
from mt_photos_ml.runtime.prepared.write import PrepareError
from service import until

FINGERPRINT = [1048576, "f446d798c07d499f"]
SMALL = [5, "9061398076a5d61b"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A network of 2 MB, in the layout of a cache that is `tmp_path`."""
    path = tmp_path / "clip" / "mine" / "visual" / "model.onnx"
    write(path, seed=0)
    return path


def write(path: Path, seed: int, kind: int = TensorProto.FLOAT) -> None:
    random, graph = np.random.default_rng(seed), Graph()
    hidden = graph("Relu", graph("MatMul", graph("Cast", "x", to=TensorProto.FLOAT), random.normal(size=(64, 4096))))
    graph("MatMul", hidden, random.normal(size=(4096, 64)), out="y")
    graph.save(path, {"x": ["n", 64]}, {"y": ["n", 64]}, kind)


def open_plain(path: Path, threads: int) -> RuntimeSession:
    return OrtRuntime(threads).open(path)


SHAPE = (1, 64)


def opened(
    cache: Path,
    model: Path,
    then: Callable[[Path], object] = lambda path: None,
    threads: int = 1,
    shape: tuple[int, ...] = SHAPE,
) -> RuntimeSession:
    """By its prepared form, which is made where there is none, as the store has it made in a pause."""

    def open_(path: Path, threads: int) -> RuntimeSession:
        then(path)
        return open_plain(path, threads)

    models = PreparedModels(cache)
    session = models.open(model, open_, threads)
    return models.open(model, open_, threads) if models.prepare(model, threads, shape) else session


def files_opened(cache: Path, model: Path) -> list[Path]:
    paths: list[Path] = []
    opened(cache, model, paths.append)
    return paths


def made(model: Path) -> list[Path]:
    return sorted(path for path in (model.parent / "prepared").glob("[!.]*") if path.is_dir())


def test_it_answers_as_the_original_does_bit_for_bit(tmp_path: Path, model: Path) -> None:
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    plain, (folder,) = OrtRuntime(1).open(model).run({"x": x}), made_by_opening(tmp_path, model)
    again = opened(tmp_path, model)
    np.testing.assert_array_equal(again.run({"x": x})[0], plain[0])
    assert (folder / "weights.bin").stat().st_size > 2_000_000
    assert (folder / "model.onnx").stat().st_size < 100_000


def made_by_opening(cache: Path, model: Path) -> list[Path]:
    opened(cache, model)
    return made(model)


def test_on_one_thread_it_is_the_same_model_and_opened_when_needed(tmp_path: Path, model: Path) -> None:
    paths: list[Path] = []
    session = opened(tmp_path, model, paths.append, threads=2)
    (folder,) = made(model)
    assert len(paths) == 2
    one, again = session.one_thread, session.one_thread
    assert one
    assert one is again
    assert paths == [model, *[folder / "model.onnx"] * 2]
    x = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    np.testing.assert_array_equal(one.run({"x": x})[0], session.run({"x": x})[0])


def test_a_model_as_it_is_has_no_second_session(tmp_path: Path, model: Path) -> None:
    assert opened(tmp_path / "elsewhere", model, threads=2).one_thread is None


def test_the_original_answers_until_it_is_made_and_then_it_is_opened(tmp_path: Path, model: Path) -> None:
    assert files_opened(tmp_path, model) == [model, made(model)[0] / "model.onnx"]
    (folder,) = made(model)
    when = (folder / "record.json").stat().st_mtime_ns
    assert files_opened(tmp_path, model) == [folder / "model.onnx"]
    assert (folder / "record.json").stat().st_mtime_ns == when


class Listening(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def preparations(cache: Path, model: Path, locks: bool) -> int:
    """Opens it, in a process of its own, and says how often that was prepared for it."""
    said = Listening()
    prepared.log.addHandler(said)
    prepared.log.setLevel("INFO")
    if not locks:  # as on some network shares
        fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError("no locks"))
    assert files_opened(cache, model)[-1] == made(model)[0] / "model.onnx"
    return sum(line.startswith("prepared ") for line in said.lines)


@pytest.mark.parametrize("locks", [True, False])
def test_several_processes_make_it_once_and_without_locks_it_is_still_whole(
    tmp_path: Path, model: Path, locks: bool
) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        often = sum(pool.starmap(preparations, [(tmp_path, model, locks)] * 4))
    assert often == 1 or (not locks and often <= 4)
    assert len(made(model)) == 1


def test_a_preparation_under_way_is_ended_with_the_service(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preparing = PreparedModels(tmp_path)
    preparing.open(model, open_plain, 1)
    preparing.close()
    assert not preparing.prepare(model, 1, SHAPE)
    assert made(model) == []
    assert "used as it is" not in caplog.text


def test_another_model_file_is_prepared_anew_and_the_old_one_is_stale(tmp_path: Path, model: Path) -> None:
    (old,) = made_by_opening(tmp_path, model)
    assert find_stale(model.parents[1]) == []
    write(model, seed=1)
    assert find_stale(model.parents[1]) == [old]
    new = next(path for path in made_by_opening(tmp_path, model) if path != old)
    assert files_opened(tmp_path, model) == [new / "model.onnx"]
    assert find_stale(model.parents[1]) == [old]


def test_the_key_stands_for_onnxruntime_and_the_processor_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {fingerprint.cache_key(model)}
    with monkeypatch.context() as other:
        other.setattr("onnxruntime.__version__", "0")
        keys.add(fingerprint.cache_key(model))
    with monkeypatch.context() as other:
        other.setattr(fingerprint, "_cpu", lambda: "another processor's")
        keys.add(fingerprint.cache_key(model))
    assert len(keys) == 3


@pytest.mark.parametrize("file", ["model.onnx", "weights.bin", "tried.npz"])
@pytest.mark.parametrize("harm", ["shorter", "gone", "other bytes"])
def test_what_is_damaged_is_made_again(
    tmp_path: Path, model: Path, file: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder,) = made_by_opening(tmp_path, model)
    path = folder / file
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if harm == "shorter" else b"?" * 100 + content[100:])
    assert files_opened(tmp_path, model)[-1] == folder / "model.onnx"
    assert path.stat().st_size == len(content)
    assert "was damaged and is removed" in caplog.text


def test_weights_that_changed_unseen_are_noticed_by_the_answer(tmp_path: Path, model: Path) -> None:
    (folder,) = made_by_opening(tmp_path, model)
    content = bytearray((folder / "weights.bin").read_bytes())
    content[200_000:1_000_000] = bytes(800_000)
    (folder / "weights.bin").write_bytes(content)
    record = json.loads((folder / "record.json").read_text())
    record["weights.bin"] = fingerprint.fingerprint(folder / "weights.bin")
    (folder / "record.json").write_text(json.dumps(record))
    assert files_opened(tmp_path, model) == [folder / "model.onnx", model, folder / "model.onnx"]


@pytest.mark.parametrize("hindrance", ["read-only", "full"])
def test_where_it_cant_be_written_the_model_is_used_as_it_is(
    tmp_path: Path, model: Path, hindrance: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hindrance == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000})())
    else:  # what a file is in the way of can't be made, for root neither
        (model.parent / "prepared").touch()
    preparing = PreparedModels(tmp_path)
    for _ in range(3):
        preparing.open(model, open_plain, 1)
        assert not preparing.prepare(model, 1, SHAPE)
    assert files_opened(tmp_path, model) == [model]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2  # of the one above, for all its attempts, and of a second one
    assert warnings[0].startswith("clip/mine/visual is used as it is")
    assert made(model) == []


def test_an_attempt_that_fails_for_good_is_not_repeated(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(model, seed=0, kind=TensorProto.INT8)
    for _ in range(2):
        assert files_opened(tmp_path, model) == [model]
    assert caplog.text.count("can't be prepared and is used as it is: its input x is a tensor(int8)") == 1


def test_a_damaged_model_is_for_the_runtime_to_tell(tmp_path: Path, model: Path) -> None:
    model.write_bytes(b"no model" * 200_000)
    assert files_that_were_tried(tmp_path, model) == [model]
    assert made(model) == []


def test_a_model_that_was_mended_is_prepared_by_the_same_process(tmp_path: Path, model: Path) -> None:
    whole, preparing = model.read_bytes(), PreparedModels(tmp_path)
    model.write_bytes(b"no model" * 200_000)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            preparing.open(model, open_plain, 1)
    model.write_bytes(whole)
    preparing.open(model, open_plain, 1)
    assert preparing.prepare(model, 1, SHAPE)
    assert len(made(model)) == 1


def test_a_model_that_wants_a_size_of_its_own_is_tried_at_the_size_that_the_task_asks_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "clip" / "mine" / "visual" / "model.onnx"
    graph = Graph()
    graph("MatMul", "x", np.zeros((100, 4000)), out="y")  # of its input it says nothing, and takes 100 only
    graph.save(model, {"x": ["n", "wide"]}, {"y": ["n", "high"]})
    opened(tmp_path, model, shape=(1, 64))
    assert made(model) == []
    assert "is used as it is" in caplog.text
    opened(tmp_path, model, shape=(1, 100))
    assert len(made(model)) == 1


def test_a_prepared_model_that_answers_otherwise_is_not_kept(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    monkeypatch.setattr(prepare, "_close", lambda answers, expected: False)
    otherwise = "^prepared, it answers otherwise than the original$"
    with pytest.raises(PrepareError, match=otherwise):
        prepare.prepare(model, folder, 1, SHAPE)
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "align", lambda model, weights: spoil(weights))
    with pytest.raises(PrepareError, match=otherwise):
        prepare.prepare(model, folder, 1, SHAPE)


def spoil(weights: Path) -> None:
    """Other numbers, as a disk that fails makes them."""
    weights.write_bytes(bytes(weights.stat().st_size))


@pytest.mark.parametrize("least", [1024, 65_536])
def test_every_region_of_the_weights_is_aligned_and_the_answers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """The recogniser has regions of odd lengths, and onnxruntime 1.31 crashed on it as it wrote it."""
    carried = file_in_wheel(ModelRef(OCR, "PP-OCRv6_small", "recognition"))
    assert carried
    monkeypatch.setattr(prepare, "_MIN_MAPPED", least)
    prepare.prepare(carried, tmp_path, 1, (1, 3, 48, 320))
    offsets: list[int] = []
    layout._place(
        onnx.load(tmp_path / "model.onnx", load_external_data=False),
        lambda offset, length: offsets.append(offset) or offset,  # type: ignore[func-returns-value]
    )
    assert len(offsets) > 40
    assert [offset for offset in offsets if offset % layout.ALIGNMENT] == []
    x = np.random.default_rng(0).normal(size=(2, 3, 48, 480)).astype(np.float32)
    plain, ours = (open_plain(path, 1) for path in (carried, tmp_path / "model.onnx"))
    np.testing.assert_array_equal(plain.run({"x": x})[0], ours.run({"x": x})[0])


def files_that_were_tried(cache: Path, model: Path) -> list[Path]:
    paths: list[Path] = []
    with pytest.raises(RuntimeError):
        opened(cache, model, paths.append)
    return paths


def test_small_models_and_those_outside_the_cache_stay_as_they_are(tmp_path: Path, model: Path) -> None:
    assert files_opened(tmp_path / "elsewhere", model) == [model]
    small = tmp_path / "clip" / "small" / "visual" / "model.onnx"
    graph = Graph()
    graph("Relu", "x", out="y")
    graph.save(small, {"x": [1, 4]}, {"y": [1, 4]})
    assert files_opened(tmp_path, small) == [small]


@pytest.mark.parametrize("kind", ["detection", "recognition"])
def test_the_text_models_of_the_wheel_can_be_prepared(tmp_path: Path, kind: str) -> None:
    carried = file_in_wheel(ModelRef(OCR, "PP-OCRv6_small", kind))
    assert carried
    model = tmp_path / "ocr" / "PP-OCRv6_small" / kind / "model.onnx"
    model.parent.mkdir(parents=True)
    shutil.copyfile(carried, model)
    shape = (1, 3, 48, 320) if kind == "recognition" else (1, 3, 736, 736)
    session, plain = opened(tmp_path, model, shape=shape), OrtRuntime(1).open(model)
    assert len(made(model)) == 1
    assert session.metadata == plain.metadata
    x = np.random.default_rng(0).normal(size=(2, 3, 48, 320)).astype(np.float32)
    if kind == "detection":
        x = np.random.default_rng(0).normal(size=(1, 3, 192, 256)).astype(np.float32)
    feed = {plain.inputs[0].name: x}
    np.testing.assert_allclose(session.run(feed)[0], plain.run(feed)[0], atol=1e-5)


# what is written, and when it is in place


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are written to the disk for good, by the names that they have then."""
    paths: list[Path] = []

    def fsync(number: int, *, fsync: Callable[[int], None] = os.fsync) -> None:
        paths.append(Path(f"/proc/self/fd/{number}").readlink())
        fsync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_all_files_are_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, model: Path, synced: list[Path]
) -> None:
    (folder,) = made_by_opening(tmp_path, model)
    assert {path.name for path in synced} == {"model.onnx", "weights.bin", "tried.npz", "record.json"}
    (half,) = {path.parent for path in synced}
    assert half.parent == folder.parent
    assert half.name.startswith(f".{folder.name}.")
    assert {path.name for path in folder.iterdir()} == {path.name for path in synced}
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_other_users_of_the_cache_can_read_it(tmp_path: Path, model: Path) -> None:
    (folder,) = made_by_opening(tmp_path, model)
    assert folder.stat().st_mode & 0o777 == 0o755


def test_of_what_was_left_half_written_only_the_old_is_removed(tmp_path: Path, model: Path) -> None:
    old, new, file = ((model.parent / "prepared") / name for name in (".old", ".new", ".file"))
    for path, minutes in ((old, 61), (new, 59)):
        path.mkdir(parents=True)
        (path / "model.onnx").touch()
        when = time.time() - minutes * 60
        os.utime(path, (when, when))
    file.touch()
    os.utime(file, (1, 1))
    assert len(made_by_opening(tmp_path, model)) == 1
    assert (old.exists(), new.exists(), file.exists()) == (False, True, True)


def test_room_for_just_what_it_may_become_is_enough(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = int(2.2 * model.stat().st_size)
    for free in (4_000_000, needed - 1, needed):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert len(made_by_opening(tmp_path, model)) == (free == needed)
    reason = f"{model.parent / 'prepared'} has 4 MB free, 4 are needed"
    assert caplog.messages == [f"clip/mine/visual is used as it is, with more memory and time to load: {reason}"] * 2


# the process that writes it


def test_one_that_another_was_quicker_to_make_is_kept(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path, model)
    (folder,) = made(model)
    theirs = folder.rename(tmp_path / "theirs")
    number = theirs.stat().st_ino
    (models := PreparedModels(tmp_path)).open(model, open_plain, 1)
    monkeypatch.setattr(prepared, "sync", lambda paths: theirs.rename(folder))
    assert models.prepare(model, 1, SHAPE)
    assert folder.stat().st_ino == number


def test_one_that_somebody_removed_is_made_again_by_the_same_process(tmp_path: Path, model: Path) -> None:
    models = PreparedModels(tmp_path)
    for _ in range(2):
        models.open(model, open_plain, 1)
        assert models.prepare(model, 1, SHAPE)
        (folder,) = made(model)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("answer", "expected", "is_close"),
    [
        ([1000.5], [1000], True),
        ([1003], [1000], False),
        ([5e-5], [0], True),
        ([0.5], [0], False),
        ([np.nan], [np.nan], True),
        ([np.nan], [0], False),
        ([[1]], [1], False),
    ],
)
def test_answers_are_as_close_as_other_kernels_make_them(
    answer: list[Any], expected: list[Any], is_close: bool
) -> None:
    one, other = [np.array(answer, np.float32)], [np.array(expected, np.float32)]
    assert prepare._close(one, other) == is_close
    assert not prepare._close(one, [*other, *other])


def tried(
    cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch, script: str, models: PreparedModels | None = None
) -> bool:
    """With a process in place of the right one that does this."""
    program = cache / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(prepared, "sys", SimpleNamespace(executable=str(program)))
    preparing = models or PreparedModels(cache)
    preparing.open(model, open_plain, 1)
    return preparing.prepare(model, 1, SHAPE)


AS_IT_IS = "clip/mine/visual is used as it is, with more memory and time to load"
NEVER = "clip/mine/visual can't be prepared and is used as it is"


@pytest.mark.parametrize(
    ("script", "said", "for_good"),
    [
        ("echo one >&2; echo two >&2; exit 3", f"{AS_IT_IS}: two", False),
        ("exit 3", f"{AS_IT_IS}: it ended with 3", False),
        ("kill -9 $$", f"{AS_IT_IS}: there was not enough memory to prepare it", False),
        ("printf 'no \\377' >&2; exit 3", f"{AS_IT_IS}: no \ufffd", False),
        ("echo why >&2; exit 30", f"{NEVER}: why", True),
        ("kill -SEGV $$", f"{NEVER}: the attempt crashed", True),
        ("kill -FPE $$", f"{NEVER}: it ended with -8", True),
        ("kill -ILL $$", f"{NEVER}: it ended with -4", True),
    ],
)
def test_a_process_that_fails_is_told_and_where_it_would_always_fail_it_is_not_tried_again(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    script: str,
    said: str,
    for_good: bool,
) -> None:
    assert not tried(tmp_path, model, monkeypatch, f"touch $4/half; echo said; {script}")
    assert caplog.messages == [said]
    assert capfd.readouterr().out == ""
    assert [[path.name for path in folder.iterdir()] for folder in made(model)] == [["record.json"]] * for_good
    assert not tried(tmp_path, model, monkeypatch, "exit 3")
    assert len(caplog.messages) == 1 + (not for_good)


def test_the_process_is_told_what_to_do(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried(tmp_path, model, monkeypatch, f'echo "$@" > {tmp_path}/told; exit 3')
    module, name, folder, threads, shape = (tmp_path / "told").read_text().removeprefix("-m ").split()
    assert (module, name, threads, shape) == ("mt_photos_ml.runtime.prepared.write", str(model), "1", "1x64")
    assert Path(folder).parent == model.parent / "prepared"


def test_a_process_that_is_at_work_is_ended_with_the_service(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    models = PreparedModels(tmp_path)
    with ThreadPoolExecutor(1) as thread:
        began = f"touch {tmp_path}/began; exec sleep 60"
        preparing = thread.submit(tried, tmp_path, model, monkeypatch, began, models)
        until((tmp_path / "began").exists)
        models.close()
        assert preparing.result(30) is False
    assert caplog.messages == []
    assert made(model) == []


# what is opened


@pytest.mark.parametrize(
    ("error", "words"), [(ValueError("one\ntwo"), "one"), (ValueError(), "ValueError"), (OSError(), "OSError")]
)
def test_a_prepared_model_that_cannot_be_opened_is_removed_and_made_again(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture, error: Exception, words: str
) -> None:
    (folder,) = made_by_opening(tmp_path, model)
    fails = [error]

    def once(path: Path) -> None:
        if path != model and fails:
            raise fails.pop()

    opened(tmp_path, model, once)
    assert f"{folder} was damaged and is removed: {words}" in caplog.messages
    assert made(model) == [folder]


def test_without_memory_a_prepared_model_is_not_to_blame(tmp_path: Path, model: Path) -> None:
    (folder,) = made_by_opening(tmp_path, model)

    def fail(path: Path) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        opened(tmp_path, model, fail)
    assert (folder / "weights.bin").is_file()


def test_one_that_answers_otherwise_is_said_to(tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder,) = made_by_opening(tmp_path, model)

    class Other:
        def run(self, feed: Any) -> list[Any]:
            return [np.zeros((1, 64), np.float32)]

    PreparedModels(tmp_path).open(model, lambda path, threads: cast(RuntimeSession, Other()), 1)
    assert caplog.messages == [f"{folder} was damaged and is removed: it answers otherwise than the original"]


def test_a_record_that_is_none_is_as_if_nobody_had_tried(tmp_path: Path, model: Path) -> None:
    (folder,) = made_by_opening(tmp_path, model)
    for content in ("[]", "no", "null"):
        (folder / "record.json").write_text(content)
        assert files_opened(tmp_path, model) == [model, folder / "model.onnx"]


def test_a_second_session_that_cannot_be_opened_any_more_is_done_without(tmp_path: Path, model: Path) -> None:
    session = opened(tmp_path, model, threads=2)
    shutil.rmtree(made(model)[0])
    assert session.one_thread is None
    assert session.run({"x": np.ones((1, 64), np.float32)})[0].shape == (1, 64)


def test_what_is_of_no_use_is_found_in_the_folders_of_all_types(tmp_path: Path, model: Path) -> None:
    textual = model.parents[1] / "textual" / "model.onnx"
    write(textual, seed=0)
    made_by_opening(tmp_path, model)
    stale = [at / "prepared" / name for at in (textual.parent, model.parent) for name in (".half", "0123")]
    half, gone = textual.parent / ".int8.partial", model.parents[1] / "gone" / "prepared" / "0123"
    for folder in (half, gone, *stale):
        folder.mkdir(parents=True)
        os.utime(folder, (1, 1))
    assert find_stale(model.parents[1]) == [half, gone, *stale]


def test_what_is_being_written_is_of_use(model: Path) -> None:
    for folder in ("prepared/.half", ".int8.partial"):
        (model.parent / folder).mkdir(parents=True)
    assert find_stale(model.parents[1]) == []


# what it is known by


def test_a_fingerprint_is_of_sixteen_places_and_stays_what_it_is(tmp_path: Path) -> None:
    (path := tmp_path / "file").write_bytes(bytes(range(256)) * 4096)
    assert fingerprint.fingerprint(path) == FINGERPRINT
    path.write_bytes(b"small")
    assert fingerprint.fingerprint(path) == SMALL
    path.write_bytes(b"")
    assert fingerprint.fingerprint(path)[0] == 0


def test_the_files_of_a_model_are_those_that_may_hold_its_weights(tmp_path: Path, model: Path) -> None:
    for name in ("weights", "b.data", "config.json", ".lock", "a.JSON"):
        (model.parent / name).touch()
    (model.parent / "int8").mkdir()
    assert [path.name for path in fingerprint.model_files(model)] == ["a.JSON", "b.data", "model.onnx", "weights"]
    before = fingerprint.cache_key(model)
    assert re.fullmatch("[0-9a-f]{16}", before)
    (model.parent / "weights").write_text("other")
    assert fingerprint.cache_key(model) != before


def test_processors_differ_by_what_their_kernels_go_by(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["processor : 0", "flags : sse avx", "MHz : 12", "flags : sse avx", "CPU part : 0xd0c", "Features : asimd"]
    texts = {"/proc/cpuinfo": "\n".join(lines)}
    monkeypatch.setattr(Path, "read_text", lambda self: texts[str(self)])
    told = f"{platform.machine()} ['CPU part : 0xd0c', 'Features : asimd', 'flags : sse avx']"
    assert fingerprint._cpu() == told


# how it is written


def test_small_weights_stay_in_the_model_and_the_example_is_kept_with_its_answer(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    graph, random = Graph(), np.random.default_rng(0)
    hidden = graph("MatMul", "x", random.normal(size=(64, 150)))  # 38 KB
    graph("MatMul", hidden, random.normal(size=(150, 2000)), out="y")
    graph.save(model, {"x": [2, 64]}, {"y": [2, 2000]})
    (half := tmp_path / "half").mkdir()
    prepare.prepare(model, half, 1, (1, 64))
    written = onnx.load(half / "model.onnx", load_external_data=False)
    beside = [tensor for tensor in written.graph.initializer if tensor.data_location == tensor.EXTERNAL]
    assert (len(written.graph.initializer), len(beside)) == (2, 1)
    with np.load(half / "tried.npz") as example:
        assert {name: example[name].shape for name in example.files} == {"in x": (2, 64), "out 0": (2, 2000)}
    prepare.check_answer(open_plain(half / "model.onnx", 1), half)


def test_it_is_prepared_on_the_processor_whatever_else_there_is(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def open_(
        path: Path, options: Any, providers: Any = None, *, open_: Callable[..., Any] = onnxruntime.InferenceSession
    ) -> Any:
        asked.append(providers)
        return open_(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_)
    prepare.prepare(model, tmp_path, 1, SHAPE)
    assert asked == [["CPUExecutionProvider"]] * 2


def inputs(*nodes: tuple[str, str, list[object]]) -> Any:
    """A session with these inputs: name, type, shape."""
    told = [SimpleNamespace(name=name, type=type, shape=shape) for name, type, shape in nodes]
    return SimpleNamespace(get_inputs=lambda: told)


def test_an_example_has_the_models_own_shape_and_ours_where_that_is_free() -> None:
    session = inputs(
        ("half", "tensor(float16)", ["n", 3, None, -1]),
        ("long", "tensor(int64)", [1, 77, 0, 100]),
        ("int", "tensor(int32)", ["n", "c", "h", "w"]),
    )
    feed = prepare._example(session, (2, 5, 8, 9))
    assert [(value.shape, value.dtype.name) for value in feed.values()] == [
        ((2, 3, 8, 9), "float16"),
        ((1, 77, 8, 100), "int64"),
        ((2, 5, 8, 9), "int32"),
    ]
    assert list(feed) == ["half", "long", "int"]
    assert set(feed["long"].ravel().tolist()) == {0, 1}
    assert len(np.unique(feed["half"])) > 100
    for name, value in prepare._example(session, (2, 5, 8, 9)).items():
        np.testing.assert_array_equal(value, feed[name])


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (("x", "tensor(int8)", [1, 2]), "its input x is a tensor(int8)"),
        (("x", "tensor(float)", [1]), "its input x has 1 axes, 2 are given to it"),
    ],
)
def test_an_input_that_cannot_be_made_up_is_told(node: tuple[str, str, list[object]], words: str) -> None:
    with pytest.raises(PrepareError) as raised:
        prepare._example(inputs(node), (1, 2))
    assert str(raised.value) == words


@pytest.mark.parametrize("error", [None, AttributeError, OSError])
def test_it_yields_to_the_service_as_far_as_the_system_lets_it(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    done: list[object] = []

    def note(what: object) -> None:
        done.append(what)
        if error and not (error is AttributeError and what != 19):
            raise error

    monkeypatch.setattr(os, "nice", note)
    monkeypatch.setattr(Path, "write_text", lambda self, text: note((str(self), text)))
    prepare._yield_to_the_service()
    assert done == [19, ("/proc/self/oom_score_adj", "1000")]


def test_large_regions_begin_with_a_page_and_what_is_aligned_is_left_alone(tmp_path: Path) -> None:
    carried = file_in_wheel(ModelRef(OCR, "PP-OCRv6_small", "recognition"))
    assert carried
    prepare.prepare(carried, tmp_path, 1, (1, 3, 48, 320))
    model, weights = tmp_path / "model.onnx", tmp_path / "weights.bin"
    regions: list[tuple[int, int]] = []
    layout._place(
        onnx.load(model, load_external_data=False),
        lambda offset, length: regions.append((offset, length)) or offset,  # type: ignore[func-returns-value]
    )
    large = [offset for offset, length in regions if length > 1 << 20]
    assert large
    assert [offset for offset in large if offset % mmap.PAGESIZE] == []
    assert [offset for offset, length in regions if length <= 1 << 20 and offset % mmap.PAGESIZE]
    before = weights.stat()
    layout.align(model, weights)
    assert weights.stat() == before


def test_regions_are_moved_as_they_are_to_a_multiple_of_64_and_those_over_a_megabyte_to_a_page(tmp_path: Path) -> None:
    mebibyte, random = 1 << 20, np.random.default_rng(0)
    contents = [random.bytes(length) for length in (3, mebibyte, mebibyte + 1, 64, 65)]
    (weights := tmp_path / "weights.bin").write_bytes(b"".join(contents))
    places = [(sum(map(len, contents[:i])), len(content)) for i, content in enumerate(contents)]

    def tensor(place: tuple[int, int], **more: str) -> TensorProto:
        entries = {"location": weights.name, "offset": str(place[0]), "length": str(place[1]), **more}
        tensor = TensorProto(data_location=TensorProto.EXTERNAL)
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        return tensor

    packed = "|".join(["key", *(f"{offset};{length};more" for offset, length in places[3:])])
    tensors = [tensor(places[0]), tensor(places[1]), tensor(places[2], prepacked_0=packed)]
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    (model := tmp_path / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    layout.align(model, weights)

    moved = onnx.load(model, load_external_data=False).graph.initializer
    told = [{entry.key: entry.value for entry in tensor.external_data} for tensor in moved]
    key, *regions = told[2]["prepacked_0"].split("|")
    assert key == "key"
    assert {region.split(";")[2] for region in regions} == {"more"}
    found = [(int(entries["offset"]), int(entries["length"])) for entries in told]
    found += [(int(offset), int(length)) for offset, length, _ in (region.split(";") for region in regions)]
    written = weights.read_bytes()
    assert [written[offset : offset + length] for offset, length in found] == contents
    page = -(-(64 + mebibyte) // mmap.PAGESIZE) * mmap.PAGESIZE
    behind = -(-(page + mebibyte + 1) // 64) * 64
    assert [offset for offset, _ in found] == [0, 64, page, behind, behind + 64]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "weights.bin"]


def test_weights_of_inner_graphs_are_found() -> None:
    def graph(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        weight = onnx.helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])
        return onnx.helper.make_graph(nodes, name, [], [], [weight])

    inner = onnx.helper.make_node("If", ["c"], [], then_branch=graph("then"), else_branch=graph("else"))
    many = onnx.helper.make_node("Many", [], [], domain="ours", bodies=[graph("one"), graph("two")])
    names = [tensor.name for tensor in layout._tensors(graph("outer", inner, many))]
    assert sorted(names) == ["else", "one", "outer", "then", "two"]
