# SPDX-License-Identifier: AGPL-3.0-only
"""Finds the devices that this build of onnxruntime can use on this machine, and chooses one for each task."""

import contextlib
import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import numpy as np

from ..machine.card import driver_key
from ..settings import Settings
from . import Session
from .kernels import describe_card
from .npu import Npu, find_npu
from .ort import DOUBLE, PROCESSOR, open_session

log = logging.getLogger("mt_photos_ml")

_NVIDIA = "in Docker, pass --gpus all; without Docker, install Nvidia's driver"
_AMD = "in Docker, pass --device /dev/kfd --device /dev/dri"
_INTEL = "in Docker, pass --device /dev/dri"
_KINDS = {
    "cuda": ("CUDA", "CUDAExecutionProvider", _NVIDIA),
    "rocm": ("ROCM", "ROCMExecutionProvider", _AMD),
    "migraphx": ("MIGraphX", "MIGraphXExecutionProvider", _AMD),
    "openvino:gpu": ("OpenVINO", "OpenVINOExecutionProvider", _INTEL),
    "openvino:cpu": ("OpenVINO CPU", "OpenVINOExecutionProvider", "it needs an Intel or AMD processor"),
    "openvino:npu": ("OpenVINO NPU", "OpenVINOExecutionProvider", "in Docker, pass --device /dev/accel"),
    "coreml": ("CoreML", "CoreMLExecutionProvider", "it needs an Apple processor"),
}
"""Devices by their names in the settings, the preferred first: name, provider, and advice if it doesn't work."""

GROUPS = ("clip", "facial-recognition", "ocr")
"""Groups of models: the names of the cache's folders."""

_ONLY_IF_NAMED = ("openvino:npu",)


@dataclass(frozen=True)
class Device:
    """A device of onnxruntime. name: for people. cache_option: the option that names the folder for compiled models.
    threads: for one inference, if the processor computes it. half: more options, if half precision is set. driver: a
    key that changes with the driver."""

    name: str
    provider: str
    options: Mapping[str, str]
    cache_option: str | None = None
    threads: int = 0
    half: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""

    @property
    def is_card(self) -> bool:
        """Whether it frees its memory only when the process ends."""
        return not self.threads

    def _is_half(self, model: Path) -> bool:
        """Never for OCR, which finds no text in half precision (upstream's issue 27941)."""
        return bool(self.half) and group_of(model) != "ocr"

    def open(self, model: Path, axes: Mapping[str, int]) -> Session:
        """A session with these free axes fixed. Compiled models are kept beside the model, if possible."""
        options = {**self.options, **(self.half if self._is_half(model) else {})}
        if self.cache_option and (
            folder := _writable(model.parent / self.provider.removesuffix("ExecutionProvider").lower())
        ):
            options[self.cache_option] = str(folder)
        session = open_session(model, self.threads, [(self.provider, options), PROCESSOR], axes)
        session.cores = self.threads
        return session

    def min_cosine(self, model: Path) -> float:
        """The least cosine between its answer and the processor's: 0.9999, so that existing indexes stay valid; 0.99
        for faces and in half precision."""
        is_face = group_of(model) == "facial-recognition" and model.parent.name == "recognition"
        return 0.99 if is_face or self._is_half(model) else 0.9999

    def failure(self) -> str | None:
        """Why a test model with a single addition fails on it; None if it runs."""
        import onnxruntime as ort

        try:
            # onnxruntime prints why it falls back to the CPU
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                session = ort.InferenceSession(DOUBLE, providers=[(self.provider, dict(self.options))])
                session.run(None, {"x": np.zeros(1, np.float32)})
        except Exception as error:  # onnxruntime exports no error classes
            return _one_line(str(error))
        if session.get_providers()[0] == self.provider:
            return None
        errors = (line for line in stdout.getvalue().splitlines() if "EP Error" in line)
        return _one_line(next(errors, "onnxruntime finds no such device"))


@dataclass
class Devices:
    """The devices of this machine. It asks no device before the first model is opened.

    wanted: by group of models, the device in the settings; "auto" takes the preferred one that works. refused: devices
    that did not work, each with the reason. distrusted: by group, why its device is no longer used.
    holds_memory: whether a model was opened on a card, which frees its memory only when the process ends.
    """

    number: str = "0"
    openvino_precision: str = "FP32"
    rocm_precision: str = "FP32"
    npu: Npu | None = None
    wanted: Mapping[str, str] = field(default_factory=dict)
    threads: int = 4
    refused: list[str] = field(default_factory=list)
    distrusted: dict[str, str] = field(default_factory=dict)
    holds_memory: bool = False

    @classmethod
    def of(cls, settings: Settings, threads: int = 4) -> Self:
        """The devices that the settings choose. threads: for one inference, if the processor computes it."""
        wanted = dict(zip(GROUPS, (settings.clip_device, settings.face_device, settings.ocr_device), strict=True))
        precisions = settings.openvino_precision, settings.rocm_precision
        return cls(settings.device_id, *precisions, find_npu(settings), wanted, threads)

    def device_of(self, model: Path) -> Device | None:
        """The device to run a model of the cache layout on; None for the processor."""
        return self.chosen_for(model) if self.is_trusted(model) else None

    def chosen_for(self, model: Path) -> Device | None:
        """Like device_of(), but includes a device that is distrusted now."""
        group = group_of(model)
        return self.named(self.wanted.get(group, "auto")) if group else None

    def is_trusted(self, model: Path) -> bool:
        return group_of(model) not in self.distrusted

    def is_measured(self, model: Path) -> bool:
        """Whether the device is used only if it is faster than the processor."""
        return self.wanted.get(group_of(model), "auto") == "auto"

    def distrust(self, model: Path, device: str, reason: str) -> bool:
        """Moves the models of this group to the processor and logs why; False if they are there already."""
        group, name = group_of(model), "/".join(model.parts[-4:-1])
        if group in self.distrusted:
            return False
        if device == _KINDS["cuda"][0] and (card := describe_card(int(self.number))):
            reason += f" ({card})"
        self.distrusted[group] = f"{device}: {name}: {reason}"
        log.warning("%s is not used for %s any more; the processor is used: %s: %s", device, group, name, reason)
        return True

    @cached_property
    def preferred(self) -> Device | None:
        """The preferred device that works here. Logs why a more preferred one does not."""
        names = [name for name in _KINDS if name not in _ONLY_IF_NAMED]
        return next((device for name in names if self._is_built_for(name) and (device := self.named(name))), None)

    @property
    def is_accelerated(self) -> bool:
        """Whether models may run on a device other than the CPU."""
        return self.npu is not None or self.preferred is not None

    @property
    def name(self) -> str:
        """The name of the device that onnxruntime uses, such as CPU or CUDA."""
        return self.preferred.name if self.preferred else "CPU"

    def describe(self) -> str:
        """The runtime, its version and its device, in one line for users."""
        import onnxruntime as ort

        return f"{f'{self.npu.name}, else ' if self.npu else ''}onnxruntime {ort.__version__} on {self.name}"

    def _is_built_for(self, name: str) -> bool:
        import onnxruntime as ort  # imported late because it takes 40 MB and 0.2 s

        if find_spec("nvidia") and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # the CUDA libraries that our extra installs
        return _KINDS[name][1] in ort.get_available_providers()

    def named(self, wanted: str) -> Device | None:
        """This device if it works; for "auto", the preferred one that works. Logs once why a device doesn't work."""
        if wanted in ("auto", "cpu"):
            return self.preferred if wanted == "auto" else None
        if wanted in self._found:
            return self._found[wanted]
        name, provider, hint = _KINDS[wanted]
        device = Device(name, provider, *self._options(wanted), driver=driver_key(int(self.number)))
        failure = device.failure() if self._is_built_for(wanted) else "this build of onnxruntime does not support it"
        if failure:
            hint = (describe_card(int(self.number)) if wanted == "cuda" else None) or hint
            self.refused.append(f"{name}: {failure} ({hint})")
            log.warning("%s can't be used here; the processor is used instead: %s (%s)", name, failure, hint)
        self._found[wanted] = None if failure else device
        return self._found[wanted]

    @cached_property
    def _found(self) -> dict[str, Device | None]:
        return {}

    def _options(self, wanted: str) -> tuple[dict[str, str], str | None, int, dict[str, str]]:
        """The fields options, cache_option, threads and half of a Device."""
        match wanted:
            case "cuda" | "rocm":
                options = {"arena_extend_strategy": "kSameAsRequested", "device_id": self.number}
                # HEURISTIC plans in 0.35 s instead of 0.9 to 2.2 s; inferences are as fast
                return options | ({"cudnn_conv_algo_search": "HEURISTIC"} if wanted == "cuda" else {}), None, 0, {}
            case "migraphx":
                half = {"migraphx_fp16_enable": "1"} if self.rocm_precision == "FP16" else {}
                return {"device_id": self.number}, "migraphx_model_cache_dir", 0, half
            case "openvino:cpu":
                threads = str(self.threads)
                options = {"device_type": "CPU", "num_of_threads": threads, "precision": "FP32"}
                return options, None, self.threads, {}
            case "openvino:gpu" | "openvino:npu":
                kind = {"openvino:gpu": f"GPU.{self.number}", "openvino:npu": "NPU"}[wanted]
                half = {"precision": "FP16"} if self.openvino_precision == "FP16" else {}
                return {"device_type": kind, "precision": "FP32"}, "cache_dir", 0, half
        return {}, None, 0, {}


def group_of(model: Path) -> str:
    """The group of a model file of the cache layout, `…/GROUP/NAME/TYPE/model.onnx`; "" for other files, such as int8
    variants, which run on the processor."""
    group = model.parts[-4] if len(model.parts) > 3 else ""
    return group if group in GROUPS else ""


def _writable(folder: Path) -> Path | None:
    """Creates the folder if it is missing; None if it isn't writable."""
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
    return folder if os.access(folder, os.W_OK) else None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
