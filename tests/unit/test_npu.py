# SPDX-License-Identifier: AGPL-3.0-only
"""Which NPU is found, and what runs on it. There is no NPU here, so onnxruntime stands in for upstream's two session
classes."""

import ctypes.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from demo.models import build_faces
from mt_photos_ml.runtime.npu import Npu, NpuRuntime, find_npu
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
ARM_NN = Npu("ARM NN", "model.armnn", ("immich_ml.sessions.ann", "AnnSession"))
ROCKCHIP = Npu("Rockchip's NPU", "rknpu/rk3588/model.rknn", ("immich_ml.sessions.rknn", "RknnSession"))


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with the name of upstream's and the two classes."""
    for kind, name in (("ann", "AnnSession"), ("rknn", "RknnSession")):
        folder = tmp_path / "site" / "immich_ml" / "sessions" / kind
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(SESSIONS.format(name=name))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "immich_ml"]:
        del sys.modules[name]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    build_faces(tmp_path)
    return tmp_path / "recognition" / "model.onnx"


@pytest.mark.parametrize("soc", ["rk3566", "rk3568", "rk3576", "rk3588"])
def test_rockchips_npu_is_found_by_the_board_and_its_library(
    soc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(names: str = f"radxa,rock\0rockchip,{soc}\0", **settings: object) -> Npu | None:
        (tmp_path / "compatible").write_text(names)
        return find_npu(Settings.model_validate({"device": "rknn", **settings}), tmp_path / "compatible")

    assert find() is None, "the library is missing"
    (tmp_path / "rknnlite").mkdir()
    (tmp_path / "rknnlite" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find() == Npu(ROCKCHIP.name, f"rknpu/{soc}/model.rknn", ROCKCHIP.session)
    assert find(rknn=False) is None
    assert find(device="cpu") is None
    assert find("raspberrypi,5-model-b\0") is None
    assert find_npu(Settings.model_validate({"device": "rknn"}), tmp_path / "nothing") is None


def test_arm_nn_is_found_by_its_two_libraries(tmp_path: Path) -> None:
    any_library = ctypes.util.find_library("z") or "libz.so.1"
    print_maps = f"import ctypes; ctypes.CDLL({any_library!r}); print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", print_maps], capture_output=True, text=True, check=True).stdout
    path = next(line.split()[-1] for line in maps.splitlines() if any_library.split(".so")[0] in line)
    environment = {"DEVICE": "armnn", "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    find = "import mt_photos_ml.runtime.npu as npu, mt_photos_ml.settings as given; print(npu.find_npu(given.load()))"
    for name, expected in (("libmali.so", None), ("libann.so", ARM_NN)):
        shutil.copy(path, tmp_path / name)
        ended = subprocess.run([sys.executable, "-c", find], env=environment, capture_output=True, check=True)
        assert ended.stdout.decode().strip() == str(expected)


@pytest.mark.parametrize("npu", [ARM_NN, ROCKCHIP], ids=["armnn", "rknn"])
@pytest.mark.usefixtures("upstream")
def test_only_a_model_with_a_file_for_the_npu_runs_there(model: Path, npu: Npu) -> None:
    plain = OrtRuntime(1)
    runtime, file = NpuRuntime(npu, plain), model.parent / npu.file
    assert (runtime.runs_on(model), len(runtime.open(model).outputs)) == ("CPU", 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    model.rename(file)  # the onnx file is not needed
    session, original = runtime.open(model), plain.open(file)
    assert runtime.runs_on(model) == npu.name
    assert session.inputs[0].shape[1:] == [3, 112, 112]
    feed = {original.inputs[0].name: np.ones((1, 3, 112, 112), np.float32)}
    np.testing.assert_array_equal(session.run(feed)[0], original.run(feed)[0])


@pytest.mark.usefixtures("upstream")
def test_if_the_npu_cannot_open_its_file_the_onnx_file_is_used(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    (model.parent / "model.armnn").write_bytes(b"damaged")
    runtime = NpuRuntime(ARM_NN, OrtRuntime(1))
    assert len(runtime.open(model).outputs) == 1
    assert "model.armnn; the processor is used instead: Cannot load model!" in caplog.text
    model.unlink()
    with pytest.raises(RuntimeError, match=r"ARM NN can't open .*model\.armnn: Cannot load model!"):
        runtime.open(model)
