# SPDX-License-Identifier: AGPL-3.0-only
"""Which NPU is there, and what runs on it: upstream's two session classes, stood in for by onnxruntime under their
names, since no such processor is at hand."""

import ctypes.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from demo.models import build_faces
from mt_photos_ml.runtime.npu import Npu, NpuRuntime, NpuSession, find_npu
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.settings import Settings

SESSIONS = """
import onnxruntime

class {name}:
    def __init__(self, model_path):
        if model_path.read_bytes() == b"damaged":
            raise ValueError("Cannot load model!")
        self._session = onnxruntime.InferenceSession(model_path.read_bytes(), providers=["CPUExecutionProvider"])

    def get_inputs(self):
        return self._session.get_inputs()

    def run(self, names, feed):
        return self._session.run(names, feed)
"""
PRESENT = """
from mt_photos_ml.runtime.npu import find_npu
from mt_photos_ml.settings import load
print(find_npu(load()))
"""


@pytest.fixture
def upstreams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of upstream's with the two classes."""
    for kind, name in (("ann", "AnnSession"), ("rknn", "RknnSession")):
        folder = tmp_path / "site" / "immich_ml" / "sessions" / kind
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(SESSIONS.format(name=name))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "immich_ml"]:
        del sys.modules[name]


def settings(**given: object) -> Settings:
    return Settings.model_validate(given)


def board(folder: Path, names: str) -> Path:
    path = folder / "compatible"
    path.write_text(names)
    return path


@pytest.mark.parametrize("soc", ["rk3566", "rk3568", "rk3576", "rk3588"])
def test_rockchips_is_known_by_the_board_and_its_library(
    soc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compatible = board(tmp_path, f"radxa,rock\0rockchip,{soc}\0")
    assert find_npu(settings(device="rknn"), compatible) is None  # without the library
    (tmp_path / "rknnlite").mkdir()
    (tmp_path / "rknnlite" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    there = find_npu(settings(device="rknn"), compatible)
    assert there == Npu("Rockchip's NPU", f"rknpu/{soc}/model.rknn", ("immich_ml.sessions.rknn", "RknnSession"))
    assert find_npu(settings(device="rknn", rknn=False), compatible) is None
    assert find_npu(settings(device="cpu"), compatible) is None
    assert find_npu(settings(device="rknn"), board(tmp_path, "raspberrypi,5-model-b\0")) is None
    assert find_npu(settings(device="rknn"), tmp_path / "nothing") is None


def test_arm_nn_is_known_by_its_two_libraries(tmp_path: Path) -> None:
    any_library = ctypes.util.find_library("z") or "libz.so.1"
    loaded = subprocess.run(
        [sys.executable, "-c", f"import ctypes; ctypes.CDLL({any_library!r}); print(open('/proc/self/maps').read())"],
        capture_output=True,
        text=True,
        check=True,
    )
    path = next(line.split()[-1] for line in loaded.stdout.splitlines() if any_library.split(".so")[0] in line)
    environment = {"DEVICE": "armnn", "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    for name, expected in (("libmali.so", "None"), ("libann.so", "Npu(name='ARM NN'")):
        shutil.copy(path, tmp_path / name)
        ended = subprocess.run(
            [sys.executable, "-c", PRESENT], env=environment, capture_output=True, text=True, check=True
        )
        assert ended.stdout.startswith(expected), ended.stderr


@pytest.mark.parametrize(
    ("file", "session"),
    [
        ("model.armnn", ("immich_ml.sessions.ann", "AnnSession")),
        ("rknpu/rk3588/model.rknn", ("immich_ml.sessions.rknn", "RknnSession")),
    ],
)
def test_a_model_with_a_file_for_the_npu_runs_there_and_another_as_everywhere(
    upstreams: None, tmp_path: Path, file: str, session: tuple[str, str]
) -> None:
    build_faces(tmp_path)
    model, plain = tmp_path / "recognition" / "model.onnx", OrtRuntime(1)
    runtime = NpuRuntime(Npu("the NPU", file, session), plain)
    feed = {plain.open(model).inputs[0].name: np.ones((1, 3, 112, 112), np.float32)}
    assert not isinstance(runtime.open(model), NpuSession)
    (model.parent / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, model.parent / file)
    there = runtime.open(model)
    assert isinstance(there, NpuSession)
    assert np.array_equal(there.run(feed)[0], plain.open(model).run(feed)[0])
    assert there.inputs[0].shape[1:] == [3, 112, 112]


def test_a_file_that_the_npu_cannot_open_is_left_for_the_onnx_file(
    upstreams: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_faces(tmp_path)
    model = tmp_path / "recognition" / "model.onnx"
    (model.parent / "model.armnn").write_bytes(b"damaged")
    runtime = NpuRuntime(Npu("ARM NN", "model.armnn", ("immich_ml.sessions.ann", "AnnSession")), OrtRuntime(1))
    assert not isinstance(runtime.open(model), NpuSession)
    assert "model.armnn, the processor is used instead: Cannot load model!" in caplog.text
    model.unlink()
    with pytest.raises(RuntimeError, match=r"ARM NN can't open .*model\.armnn: Cannot load model!"):
        runtime.open(model)


def test_a_class_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.armnn").write_bytes(b"any")
    gone = NpuRuntime(Npu("ARM NN", "model.armnn", ("immich_ml.sessions.ann", "AnnSession")), OrtRuntime(1))
    with pytest.raises(RuntimeError, match=r"ARM NN can't open .*No module named 'immich_ml'"):
        gone.open(tmp_path / "model.onnx")
