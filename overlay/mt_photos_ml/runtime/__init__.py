# SPDX-License-Identifier: AGPL-3.0-only
"""The seam: a Runtime opens a Session for a model file. Nothing outside this folder knows which library runs it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]
"""The inputs of one inference, by name."""


class Node(Protocol):
    """An input or an output of a model."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> Sequence[int | str | None]:
        """A number for an axis that the model fixes; a name or None for a free one."""


class Session(Protocol):
    """A model that is loaded. Any number of threads may run it at once."""

    @property
    def inputs(self) -> Sequence[Node]: ...

    @property
    def outputs(self) -> Sequence[Node]:
        """Empty if the runtime does not tell."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata in the model file, such as the characters that a text recogniser knows."""

    @property
    def one_thread(self) -> "Session | None":
        """The same model on one thread, to run beside others; None if that would take more memory."""

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        """All outputs, in the model's order."""


class ModelDamaged(RuntimeError):
    """The model file is incomplete, or not a model."""


class InferenceError(RuntimeError):
    """An inference failed; the message names the model."""


class Runtime(Protocol):
    """Opens sessions. Runtimes wrap each other: one for NPUs, one for prepared models, onnxruntime innermost."""

    def open(self, model: Path) -> Session:
        """Loads a model file of the cache layout, `…/TASK/NAME/TYPE/model.onnx`. Raises ModelDamaged, MemoryError."""

    def runs_on(self, model: Path) -> str:
        """The device that a model runs on, such as CPU, CUDA or OpenVINO."""
