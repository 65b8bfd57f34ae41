# SPDX-License-Identifier: AGPL-3.0-only
"""onnxruntime sessions, on the processor and on every device that it supports."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import ModelDamaged, Node, PlainSession, Session, Tensors

if TYPE_CHECKING:
    import onnxruntime

# onnxruntime does not export its error classes; these mean a damaged file, the others may be about the device
_FILE_ERRORS = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "UnicodeDecodeError")
_FILE_MESSAGES = ("xternal", "does not have a graph")  # of weights in another file; of an empty file, up to 1.23

DOUBLE = bytes.fromhex(
    "08083a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)
"""A model y = Add(x, x) of one float, as onnx.helper writes it. Unlike a copy, it needs code for the card."""


@cache
def _share_arena() -> None:
    """Lets all CPU sessions share one memory pool, because two seldom need it at the same time."""
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def shrink_arena() -> None:
    """Frees the unused memory of the pool that CPU sessions share; dropping a session does not free it."""
    if not _share_arena.cache_info().currsize:
        return
    import onnxruntime as ort

    run_options = ort.RunOptions()
    run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = ort.InferenceSession(DOUBLE, session_options(1), providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32)}, run_options)


def session_options(threads: int) -> "onnxruntime.SessionOptions":
    """Options for a session on any device. threads: for one inference; 0 leaves the choice to onnxruntime."""
    import onnxruntime as ort

    _share_arena()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # otherwise a model's threads spin while the next model needs the cores
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it would keep a memory plan for each shape, and every photo has its own
    options.log_severity_level = 3
    return options


class OrtSession(PlainSession):
    """An onnxruntime session. cores: that an inference takes."""

    def __init__(self, session: "onnxruntime.InferenceSession", cores: int = 1) -> None:
        self._session, self.cores = session, cores
        self.inputs: Sequence[Node] = session.get_inputs()
        self.outputs: Sequence[Node] = session.get_outputs()
        self.metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        return list(self._session.run(None, dict(feed)))


Provider = tuple[str, Mapping[str, str]]
"""The name of an execution provider, and its options."""

PROCESSOR: Provider = ("CPUExecutionProvider", {})


def open_session(
    model: Path, threads: int, providers: Sequence[Provider] = (PROCESSOR,), axes: Mapping[str, int] = {}
) -> OrtSession:
    """Opens a model. providers: the preferred first. axes: fixed lengths of free axes, by name. Raises ModelDamaged."""
    import onnxruntime as ort

    try:
        options = session_options(threads)
        for axis, length in axes.items():
            options.add_free_dimension_override_by_name(axis, length)
        return OrtSession(ort.InferenceSession(model, options, providers=list(providers)), max(threads, 1))
    except Exception as error:
        if type(error).__name__ in _FILE_ERRORS or any(words in str(error) for words in _FILE_MESSAGES):
            raise ModelDamaged(f"{model}: {error}") from error
        raise


class OrtRuntime:
    """Opens models with onnxruntime on the processor."""

    def __init__(self, threads: int = 0) -> None:
        """threads: for one inference; 0 leaves the choice to onnxruntime."""
        self._threads = threads

    def open(self, model: Path) -> Session:
        return open_session(model, self._threads)

    def runs_on(self, model: Path) -> str:
        return "CPU"
