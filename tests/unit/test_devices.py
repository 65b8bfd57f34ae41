# SPDX-License-Identifier: AGPL-3.0-only
"""Which device sessions get, with which options. No card is at hand: what this build of onnxruntime lacks is pretended
by its list of providers, and falls back for real."""

from pathlib import Path

import onnxruntime
import pytest

from mt_photos_ml.runtime.devices import CPU, Devices

CUDA, ROCM, OPENVINO, MIGRAPHX = (f"{name}ExecutionProvider" for name in ("CUDA", "ROCM", "OpenVINO", "MIGraphX"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "clip" / "name" / "visual" / "model.onnx"
    path.parent.mkdir(parents=True)
    return path


def pretend(monkeypatch: pytest.MonkeyPatch, *providers: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*providers, CPU])


def working(monkeypatch: pytest.MonkeyPatch, devices: Devices, provider: str) -> Devices:
    """As if this provider worked."""
    pretend(monkeypatch, provider)
    monkeypatch.setattr(devices, "_failure", lambda name: None)
    return devices


def test_a_build_for_the_processor_uses_it_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    devices = Devices()
    assert devices.providers(None) == [(CPU, {})]
    assert not devices.is_accelerated
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:Specified provider")  # which onnxruntime says of one that it was not built with
@pytest.mark.parametrize("provider", [CUDA, ROCM, OPENVINO, MIGRAPHX])
def test_a_device_that_does_not_work_is_said_once_with_what_to_do_and_the_processor_is_used(
    provider: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, provider)
    devices = Devices()
    for _ in range(3):
        assert devices.providers(None) == [(CPU, {})]
    (line,) = caplog.messages
    assert line.startswith(f"{provider.removesuffix('ExecutionProvider')} can't be used here, the processor is used")
    assert "a container is given" in line


@pytest.mark.parametrize("provider", [CUDA, ROCM])
def test_a_card_is_chosen_by_its_number(provider: str, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    devices = working(monkeypatch, Devices("2"), provider)
    options = {"arena_extend_strategy": "kSameAsRequested", "device_id": "2"}
    assert devices.providers(model) == [(provider, options), (CPU, {})]
    assert devices.is_accelerated


def test_openvino_keeps_what_it_compiles_beside_the_model(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    devices = working(monkeypatch, Devices("1", openvino_precision="FP16"), OPENVINO)
    ((_, options), _) = devices.providers(model)
    cache = str(model.parent / "openvino")
    assert options == {"device_type": "GPU.1", "precision": "FP16", "cache_dir": cache}
    ((_, options), _) = devices.providers(Path("/nowhere/clip/name/visual/model.onnx"))
    assert options == {"device_type": "GPU.1", "precision": "FP16"}


def test_text_is_read_in_full_precision_always(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    devices = working(monkeypatch, Devices(openvino_precision="FP16"), OPENVINO)
    ((_, options), _) = devices.providers(tmp_path / "ocr" / "name" / "detection" / "model.onnx")
    assert options["precision"] == "FP32"


def test_migraphx_has_the_folder_that_it_wants(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    devices = working(monkeypatch, Devices(rocm_precision="FP16"), MIGRAPHX)
    ((_, options), _) = devices.providers(model)
    folder = model.parent / "migraphx"
    assert folder.is_dir()
    assert options == {"device_id": "0", "migraphx_fp16_enable": "1", "migraphx_model_cache_dir": str(folder)}


def test_the_best_of_several_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = working(monkeypatch, Devices(), CUDA)
    pretend(monkeypatch, OPENVINO, "TensorrtExecutionProvider", CUDA)
    assert devices.provider == CUDA
