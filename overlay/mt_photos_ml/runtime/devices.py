# SPDX-License-Identifier: AGPL-3.0-only
"""The devices that onnxruntime can use on this machine, and the same options for each as the base image sets."""

import contextlib
import io
import logging
import os
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from ..settings import Settings
from .npu import Npu, find_npu

log = logging.getLogger("mt_photos_ml")

CPU = "CPUExecutionProvider"

_HINTS = {
    "CUDAExecutionProvider": "a container is given an Nvidia card by --gpus all, a bare machine by Nvidia's driver",
    "ROCMExecutionProvider": "a container is given an AMD card by --device /dev/kfd --device /dev/dri",
    "MIGraphXExecutionProvider": "a container is given an AMD card by --device /dev/kfd --device /dev/dri",
    "OpenVINOExecutionProvider": "a container is given an Intel GPU by --device /dev/dri",
    "CoreMLExecutionProvider": "it is for Apple's processors",
}
"""The providers that we use, the preferred first, and a hint for each that can't be used."""

IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)
"""A model that does nothing: y = Identity(x), of one float, as onnx.helper writes it."""


class Devices:
    """The devices of this machine, not touched before the first model is opened. refused: those that this build
    supports and that did not work, each with the reason. holds_memory: whether a session was opened on a card,
    whose memory only the end of the process gives back."""

    def __init__(
        self, number: str = "0", openvino_precision: str = "FP32", rocm_precision: str = "FP32", npu: Npu | None = None
    ) -> None:
        """number: of the card, counted from 0. Precision: FP32 or FP16."""
        self._number, self._openvino_precision, self._rocm_precision = number, openvino_precision, rocm_precision
        self.npu = npu
        self.refused: list[str] = []
        self.holds_memory = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.device_id, settings.openvino_precision, settings.rocm_precision, find_npu(settings))

    @property
    def is_accelerated(self) -> bool:
        """Whether models run on a device other than the CPU."""
        return self.npu is not None or self.provider != CPU

    @cached_property
    def provider(self) -> str:
        """The preferred provider of this build of onnxruntime that works here. Logs why a preferred one does not."""
        import onnxruntime as ort  # imported late: it takes 40 MB and 0.2 s

        if find_spec("nvidia") and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # the CUDA libraries that our extra installs
        for provider in [name for name in _HINTS if name in ort.get_available_providers()]:
            failure = self._failure(provider)
            if failure is None:
                return provider
            name, reason = provider.removesuffix("ExecutionProvider"), f"{failure} ({_HINTS[provider]})"
            self.refused.append(f"{name}: {reason}")
            log.warning("%s can't be used here, the processor is used instead: %s", name, reason)
        return CPU

    @property
    def name(self) -> str:
        """Of the device that onnxruntime uses, such as CPU or CUDA."""
        return self.provider.removesuffix("ExecutionProvider")

    def describe(self) -> str:
        """The runtime, its version and its device, in one line for users."""
        import onnxruntime as ort

        return f"{f'{self.npu.name}, else ' if self.npu else ''}onnxruntime {ort.__version__} on {self.name}"

    def providers(self, model: Path) -> list[tuple[str, dict[str, str]]]:
        """The providers for a session of this model, each with its options; the CPU runs what the device can't."""
        if self.provider == CPU:
            return [(CPU, {})]
        self.holds_memory = True
        return [(self.provider, self._options(self.provider, model)), (CPU, {})]

    def _failure(self, provider: str) -> str | None:
        """Why a model that does nothing fails on it; None if it runs."""
        import numpy as np
        import onnxruntime as ort

        try:
            # onnxruntime prints there that it falls back to the CPU
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                session = ort.InferenceSession(IDENTITY, providers=[(provider, self._options(provider, None))])
                session.run(None, {"x": np.zeros(1, np.float32)})
        except Exception as error:  # onnxruntime has no class for its errors
            return _one_line(str(error))
        if session.get_providers()[0] == provider:
            return None
        errors = (line for line in stdout.getvalue().splitlines() if "EP Error" in line)
        return _one_line(next(errors, "onnxruntime finds no such device"))

    def _options(self, provider: str, model: Path | None) -> dict[str, str]:
        """model: compiled forms are kept beside it."""
        match provider:
            case "CUDAExecutionProvider" | "ROCMExecutionProvider":
                return {"arena_extend_strategy": "kSameAsRequested", "device_id": self._number}
            case "MIGraphXExecutionProvider":
                fp16 = {"migraphx_fp16_enable": "1"} if self._rocm_precision == "FP16" else {}
                return {"device_id": self._number, **fp16, **_cache("migraphx_model_cache_dir", model, "migraphx")}
            case "OpenVINOExecutionProvider":
                # in half precision OCR reads nothing (upstream's issue 27941)
                is_ocr = model is not None and "ocr" in model.parts[-4:-3]
                options = {"device_type": f"GPU.{self._number}"} | _cache("cache_dir", model, "openvino")
                return options | {"precision": "FP32" if is_ocr else self._openvino_precision}
        return {}


def _cache(option: str, model: Path | None, name: str) -> dict[str, str]:
    """The option with a folder of this name beside the model, made if it is missing; empty if it can't be written."""
    folder = model.parent / name if model else Path()
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
    return {option: str(folder)} if model and os.access(folder, os.W_OK) else {}


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
