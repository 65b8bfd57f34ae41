# SPDX-License-Identifier: AGPL-3.0-only
"""Prepared models: made once, the same answers, made again when anything differs, done without where they can't be."""

import fcntl
import json
import logging
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from demo.graph import Graph
from mt_photos_ml.models.catalog import OCR, ModelRef
from mt_photos_ml.models.sources import file_in_wheel
from mt_photos_ml.runtime import RuntimeSession, fingerprint, layout, prepare, prepared
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.runtime.prepare import PrepareError
from mt_photos_ml.runtime.prepared import PreparedModels, find_stale


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
    assert find_stale(tmp_path) == []
    write(model, seed=1)
    assert find_stale(tmp_path) == [old]
    new = next(path for path in made_by_opening(tmp_path, model) if path != old)
    assert files_opened(tmp_path, model) == [new / "model.onnx"]
    assert find_stale(tmp_path) == [old]


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
    with pytest.raises(PrepareError, match="answers otherwise"):
        prepare.prepare(model, folder, 1, SHAPE)
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "align", lambda model, weights: spoil(weights))
    with pytest.raises(PrepareError, match="answers otherwise"):
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
