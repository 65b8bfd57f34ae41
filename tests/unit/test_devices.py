# SPDX-License-Identifier: AGPL-3.0-only
"""Which device sessions get, with which options. No card is at hand: onnxruntime's list of providers pretends one, on
which a model fails for real; if the card is to work, onnxruntime's session is a stand-in that accepts it."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from mt_photos_ml.runtime.devices import CPU, Devices
from mt_photos_ml.runtime.ort import OrtRuntime

CUDA, ROCM, OPENVINO, MIGRAPHX = (f"{name}ExecutionProvider" for name in ("CUDA", "ROCM", "OpenVINO", "MIGraphX"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "clip" / "name" / "visual" / "model.onnx"
    path.parent.mkdir(parents=True)
    return path


def pretend(monkeypatch: pytest.MonkeyPatch, *providers: str, works: bool = True) -> None:
    class Working:
        def __init__(self, model: bytes, providers: list[tuple[str, dict[str, str]]]) -> None:
            self._provider = providers[0][0]

        def run(self, names: None, feed: Any) -> None: ...

        def get_providers(self) -> list[str]:
            return [self._provider]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*providers, CPU])
    if works:
        monkeypatch.setattr(onnxruntime, "InferenceSession", Working)


def test_a_build_for_the_cpu_uses_it_and_logs_nothing(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    devices = Devices()
    assert devices.providers(model) == [(CPU, {})]
    assert (devices.name, devices.is_accelerated, devices.holds_memory) == ("CPU", False, False)
    assert devices.describe() == f"onnxruntime {onnxruntime.__version__} on CPU"
    assert OrtRuntime(1, devices).runs_on(model) == "CPU"
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:Specified provider")  # onnxruntime's, of one that it was not built with
@pytest.mark.parametrize("provider", [CUDA, ROCM, OPENVINO, MIGRAPHX])
def test_a_device_that_fails_is_logged_once_with_a_hint_and_the_cpu_is_used(
    provider: str, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, provider, works=False)
    devices = Devices()
    for _ in range(3):
        assert devices.providers(model) == [(CPU, {})]
    assert (devices.is_accelerated, devices.holds_memory) == (False, False)
    (line,), (refused,) = caplog.messages, devices.refused
    name = provider.removesuffix("ExecutionProvider")
    assert line.startswith(f"{name} can't be used here, the processor is used instead: ")
    assert refused.startswith(f"{name}: ")
    assert "(a container is given" in line
    assert "(a container is given" in refused


CARD = {"arena_extend_strategy": "kSameAsRequested", "device_id": "2"}
INTEL = {"device_type": "GPU.2", "precision": "FP16", "cache_dir": "openvino"}
AMD = {"device_id": "2", "migraphx_fp16_enable": "1", "migraphx_model_cache_dir": "migraphx"}


@pytest.mark.parametrize(
    ("provider", "task", "options"),
    [
        (CUDA, "clip", CARD),
        (ROCM, "clip", CARD),
        (OPENVINO, "clip", INTEL),
        (OPENVINO, "ocr", INTEL | {"precision": "FP32"}),  # it reads nothing in half precision
        (MIGRAPHX, "clip", AMD),
    ],
)
def test_each_device_has_its_options_and_keeps_compiled_models_beside_the_model(
    provider: str, task: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, provider)
    devices = Devices("2", openvino_precision="FP16", rocm_precision="FP16")
    assert not devices.holds_memory
    model = tmp_path / task / "name" / "visual" / "model.onnx"
    model.parent.mkdir(parents=True)
    folders = [name for key, name in options.items() if key.endswith("cache_dir")]
    expected = {key: str(model.parent / value) if value in folders else value for key, value in options.items()}
    assert devices.providers(model) == [(provider, expected), (CPU, {})]
    assert all((model.parent / folder).is_dir() for folder in folders)
    assert (devices.is_accelerated, devices.holds_memory) == (True, True)
    for key in [key for key in options if key.endswith("cache_dir")]:
        ((_, elsewhere), _) = devices.providers(Path("/nowhere", task, "name", "visual", "model.onnx"))
        assert elsewhere == {name: value for name, value in options.items() if name != key}, "it can't be written"


def test_the_preferred_of_several_devices_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, OPENVINO, "TensorrtExecutionProvider", CUDA)
    assert Devices().provider == CUDA
