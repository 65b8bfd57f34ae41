# SPDX-License-Identifier: AGPL-3.0-only
"""Which device a task gets, and with which options. The test machine has no card: the tests add one to onnxruntime's
list of providers, where it really fails; if it has to work, a stand-in replaces onnxruntime's session."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from mt_photos_ml.runtime.devices import Devices

CPU, CUDA, ROCM, OPENVINO, MIGRAPHX = (
    f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "ROCM", "OpenVINO", "MIGraphX")
)
GIVEN: list[tuple[str, dict[str, str]]] = []
"""The provider and the options of each session of the stand-in."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "clip" / "name" / "visual" / "model.onnx"
    path.parent.mkdir(parents=True)
    return path


def pretend(monkeypatch: pytest.MonkeyPatch, *providers: str, works: bool = True) -> None:
    class Working:
        def __init__(self, model: object, *options: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            GIVEN.append(providers[0])

        def run(self, names: None, feed: Any) -> None: ...

        def get_providers(self) -> list[str]:
            return [GIVEN[-1][0]]

        def get_inputs(self) -> list[object]:
            return []

        get_outputs = get_inputs

        def get_modelmeta(self) -> Any:
            return type("Meta", (), {"custom_metadata_map": {}})

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*providers, CPU])
    if works:
        monkeypatch.setattr(onnxruntime, "InferenceSession", Working)


def test_a_build_for_the_cpu_uses_the_cpu_and_logs_nothing(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    devices = Devices()
    assert devices.device_of(model) is None
    assert (devices.name, devices.is_accelerated, devices.holds_memory) == ("CPU", False, False)
    assert devices.describe() == f"onnxruntime {onnxruntime.__version__} on CPU"
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:Specified provider")  # onnxruntime warns about a provider that it lacks
@pytest.mark.parametrize("provider", [CUDA, ROCM, MIGRAPHX])
def test_a_device_that_fails_is_logged_once_with_a_hint_and_the_cpu_is_used(
    provider: str, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, provider, works=False)
    devices = Devices()
    for _ in range(3):
        assert devices.device_of(model) is None
    assert (devices.is_accelerated, devices.holds_memory) == (False, False)
    (line,), (refused,) = caplog.messages, devices.refused
    name = provider.removesuffix("ExecutionProvider")
    assert line.startswith(f"{name} can't be used here; the processor is used instead: ")
    assert refused.startswith(f"{name}: ")
    assert "(in Docker, pass --" in line
    assert "(in Docker, pass --" in refused


CARD = {"arena_extend_strategy": "kSameAsRequested", "device_id": "2"}
INTEL = {"device_type": "GPU.2", "precision": "FP16", "cache_dir": "openvino"}
AMD = {"device_id": "2", "migraphx_fp16_enable": "1", "migraphx_model_cache_dir": "migraphx"}


@pytest.mark.parametrize(
    ("provider", "group", "options"),
    [
        (CUDA, "clip", CARD | {"cudnn_conv_algo_search": "HEURISTIC"}),
        (ROCM, "clip", CARD),
        (OPENVINO, "clip", INTEL),
        (OPENVINO, "ocr", INTEL | {"precision": "FP32"}),  # OCR finds no text in half precision
        (MIGRAPHX, "clip", AMD),
        (MIGRAPHX, "ocr", {key: value for key, value in AMD.items() if "fp16" not in key}),
    ],
)
def test_each_device_has_its_options_and_keeps_compiled_models_beside_the_model(
    provider: str, group: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, provider)
    devices = Devices("2", openvino_precision="FP16", rocm_precision="FP16")
    model = tmp_path / group / "name" / "visual" / "model.onnx"
    model.parent.mkdir(parents=True)
    device = devices.device_of(model)
    assert device
    assert device.is_card
    folders = [key for key in options if key.endswith("cache_dir")]
    device.open(model, {})
    assert GIVEN[-1] == (provider, options | {key: str(model.parent / options[key]) for key in folders})
    assert all((model.parent / options[key]).is_dir() for key in folders)
    assert device.min_cosine(model) == (0.99 if "FP16" in options.values() or "fp16" in str(options) else 0.9999)
    device.open(Path("/nowhere", group, "name", "visual", "model.onnx"), {})
    assert GIVEN[-1][1].keys() == options.keys() - folders, "no cache if it can't be written"


def test_the_preferred_device_of_several_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, OPENVINO, "TensorrtExecutionProvider", CUDA)
    assert Devices().name == "CUDA"


def test_each_task_runs_on_the_device_in_its_own_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, OPENVINO)
    wanted = {"clip": "openvino:npu", "facial-recognition": "cpu", "ocr": "cuda"}
    devices = Devices(wanted=wanted, threads=3)
    models = {group: tmp_path / group / "name" / "detection" / "model.onnx" for group in wanted}
    names = {group: device.name for group, model in models.items() if (device := devices.device_of(model))}
    assert names == {"clip": "OpenVINO NPU"}
    assert caplog.messages[0].startswith("CUDA can't be used here; the processor is used instead: this build of")
    wanted["ocr"] = "openvino:cpu"
    processor = devices.device_of(models["ocr"])
    assert processor
    assert (processor.threads, processor.is_card, processor.options["num_of_threads"]) == (3, False, "3")
    assert devices.device_of(tmp_path / "clip" / "name" / "visual" / "int8" / "model.onnx") is None, (
        "int8 runs on the processor"
    )
