# SPDX-License-Identifier: AGPL-3.0-only
"""Sessions of plain onnxruntime, on a bare machine."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import Damaged, Node, Opened
from .prepared import Prepared

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger("mt_photos_ml")

# The devices that a build of onnxruntime may be for, the preferred first, and how they are to be used.
_DEVICES: dict[str, dict[str, str]] = {
    "CUDAExecutionProvider": {"arena_extend_strategy": "kSameAsRequested"},
    "OpenVINOExecutionProvider": {"device_type": "GPU", "precision": "FP32"},
    "CoreMLExecutionProvider": {},
    "CPUExecutionProvider": {},
}

# A model that does nothing: y = Identity(x), a float, as onnx.helper writes it.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)

# onnxruntime's errors that speak of the file; it exports none of its error classes. Others may speak of the device.
_DAMAGED = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "UnicodeDecodeError")


@cache
def _one_arena() -> None:
    """One pool of memory for what all sessions on the processor compute with: seldom do two need theirs at a time."""
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def empty_arena() -> None:
    """Returns what sessions on the processor computed with, which dropping them does not: it is not theirs alone."""
    if not _one_arena.cache_info().currsize:
        return
    import onnxruntime as ort

    asked = ort.RunOptions()
    asked.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = ort.InferenceSession(_IDENTITY, options(1), providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32)}, asked)


def options(threads: int) -> "onnxruntime.SessionOptions":
    """How a session is to run, on any device. threads: for one inference; 0 leaves the choice to onnxruntime."""
    import onnxruntime as ort

    _one_arena()
    chosen = ort.SessionOptions()
    chosen.add_session_config_entry("session.use_env_allocators", "1")
    # else a model's threads go on waiting for work, with all their might, while the next model wants the cores
    chosen.add_session_config_entry("session.force_spinning_stop", "1")
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.enable_mem_pattern = False  # it keeps a plan of memory for every shape, and photos have any
    chosen.log_severity_level = 3
    return chosen


@contextmanager
def damage_told(model: Path) -> Iterator[None]:
    """Raises Damaged where onnxruntime says that a model file is."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ in _DAMAGED or "xternal" in str(error):  # weights in a file beside it
            raise Damaged(f"{model}: {error}") from error
        raise


class OnnxSession:
    """An onnxruntime session behind the seam."""

    one_thread = None

    def __init__(self, session: "onnxruntime.InferenceSession") -> None:
        self._session = session
        self.inputs: Sequence[Node] = session.get_inputs()
        self.metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return list(self._session.run(None, dict(feed)))


class OnnxRuntime:
    """onnxruntime with the best device of the build that is installed."""

    def __init__(self, threads: int = 0, prepared: Prepared | None = None) -> None:
        """threads: for one inference; 0 leaves the choice to onnxruntime. prepared: used on the processor only."""
        self._threads, self._prepared = threads, prepared

    def open(self, model: Path) -> Opened:
        if self._prepared is None or self.devices() != ["CPUExecutionProvider"]:
            return self._open(model, self._threads)
        return self._prepared.open(model, self._open, self._threads)

    def _open(self, model: Path, threads: int) -> OnnxSession:
        import onnxruntime as ort  # 40 MB and a fifth of a second that a start without a photo does not need

        devices = self.devices()
        if "CUDAExecutionProvider" in devices:
            ort.preload_dlls()  # of the CUDA that the extra installed
        with damage_told(model):
            providers = [(name, _DEVICES[name]) for name in devices]
            session = ort.InferenceSession(model, options(threads), providers=providers)
        if session.get_providers()[0] != devices[0]:
            log.warning("%s can't be used here, the processor is used instead", devices[0])
        return OnnxSession(session)

    def give_back(self) -> None:
        empty_arena()

    def close(self) -> None:
        if self._prepared is not None:
            self._prepared.close()

    def devices(self) -> list[str]:
        """The devices that this onnxruntime was built for, the preferred first."""
        import onnxruntime as ort

        available = ort.get_available_providers()
        return [name for name in _DEVICES if name in available]

    def describe(self) -> str:
        import onnxruntime as ort

        devices = ", ".join(name.removesuffix("ExecutionProvider") for name in self.devices())
        return f"onnxruntime {ort.__version__} on {devices}"
