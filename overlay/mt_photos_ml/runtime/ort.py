# SPDX-License-Identifier: AGPL-3.0-only
"""Sessions of onnxruntime, on every device that it supports."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import ModelDamaged, Node, Session, Tensors
from .devices import IDENTITY, Devices

if TYPE_CHECKING:
    import onnxruntime

# onnxruntime does not export its error classes; these mean that the file is damaged, others may be about the device
_FILE_ERRORS = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "UnicodeDecodeError")


@cache
def _share_arena() -> None:
    """Gives all sessions on the CPU one memory pool, since two seldom need it at the same time."""
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def shrink_arena() -> None:
    """Returns the free memory of the pool that sessions on the CPU share; dropping them does not."""
    if not _share_arena.cache_info().currsize:
        return
    import onnxruntime as ort

    run_options = ort.RunOptions()
    run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = ort.InferenceSession(IDENTITY, session_options(1), providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32)}, run_options)


def session_options(threads: int) -> "onnxruntime.SessionOptions":
    """Options of a session on any device. threads: for one inference; 0 leaves the choice to onnxruntime."""
    import onnxruntime as ort

    _share_arena()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # otherwise a model's threads spin while the next model needs the cores
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it keeps a memory plan for each shape, and every photo has another
    options.log_severity_level = 3
    return options


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
    """Opens models with onnxruntime, on the best device that works."""

    def __init__(self, threads: int = 0, devices: Devices | None = None) -> None:
        """threads: for one inference; 0 leaves the choice to onnxruntime."""
        self._threads, self._devices = threads, devices or Devices()

    def open(self, model: Path) -> Session:
        import onnxruntime as ort

        try:
            providers = self._devices.providers(model)
            return OrtSession(ort.InferenceSession(model, session_options(self._threads), providers=providers))
        except Exception as error:
            if type(error).__name__ in _FILE_ERRORS or "xternal" in str(error):  # of weights in a file beside it
                raise ModelDamaged(f"{model}: {error}") from error
            raise

    def runs_on(self, model: Path) -> str:
        return self._devices.name
