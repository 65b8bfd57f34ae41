# SPDX-License-Identifier: AGPL-3.0-only
"""Sessions of onnxruntime, on every device that it knows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import ModelDamaged, Node, Session, Tensors
from .devices import IDENTITY, Devices

if TYPE_CHECKING:
    import onnxruntime

# onnxruntime's errors that speak of the file; it exports none of its error classes. Others may speak of the device.
_ERRORS_OF_THE_FILE = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "UnicodeDecodeError")


@cache
def _share_arena() -> None:
    """One pool of memory for what all sessions on the processor compute with: seldom do two need theirs at a time."""
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def shrink_arena() -> None:
    """Returns the memory that sessions on the processor computed with; they share it, so dropping them does not."""
    if not _share_arena.cache_info().currsize:
        return
    import onnxruntime as ort

    run_options = ort.RunOptions()
    run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = ort.InferenceSession(IDENTITY, session_options(1), providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32)}, run_options)


def session_options(threads: int) -> "onnxruntime.SessionOptions":
    """How a session is to run, on any device. threads: for one inference; 0 leaves the choice to onnxruntime."""
    import onnxruntime as ort

    _share_arena()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # else a model's threads go on waiting for work, with all their might, while the next model wants the cores
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it keeps a plan of memory for every shape, and photos have any
    options.log_severity_level = 3
    return options


@contextmanager
def translate_ort_errors(model: Path) -> Iterator[None]:
    """Raises ModelDamaged for the errors of onnxruntime that speak of the model file."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ in _ERRORS_OF_THE_FILE or "xternal" in str(error):  # weights in a file beside it
            raise ModelDamaged(f"{model}: {error}") from error
        raise


class OrtSession:
    """An onnxruntime session behind the seam."""

    one_thread = None

    def __init__(self, session: "onnxruntime.InferenceSession") -> None:
        self._session = session
        self.inputs: Sequence[Node] = session.get_inputs()
        self.outputs: Sequence[Node] = session.get_outputs()
        self.metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        return list(self._session.run(None, dict(feed)))


class OrtRuntime:
    """onnxruntime with the best device that works."""

    def __init__(self, threads: int = 0, devices: Devices | None = None) -> None:
        """threads: for one inference; 0 leaves the choice to onnxruntime."""
        self._threads, self._devices = threads, devices or Devices()

    def open(self, model: Path) -> Session:
        import onnxruntime as ort

        with translate_ort_errors(model):
            providers = self._devices.providers(model)
            return OrtSession(ort.InferenceSession(model, session_options(self._threads), providers=providers))

    def runs_on(self, model: Path) -> str:
        return self._devices.name
