# SPDX-License-Identifier: AGPL-3.0-only
"""The seam: who opens a session for a model file. Nothing outside this folder knows where a session comes from."""

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
        """A number where the model fixes the axis, a name or None where it is free."""
        ...


class Session(Protocol):
    """A model that is loaded. Any number of threads may run it at once."""

    @property
    def inputs(self) -> Sequence[Node]: ...

    @property
    def outputs(self) -> Sequence[Node]:
        """None at all where the runtime does not tell."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the model file says of itself, such as the characters that a text recogniser knows."""
        ...

    @property
    def one_thread(self) -> "Session | None":
        """The same model on one thread, to run beside others; None if that would need memory of its own."""
        ...

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        """All outputs in the model's order."""
        ...


class ModelDamaged(RuntimeError):
    """The model file is not whole, or no model at all."""


class InferenceError(RuntimeError):
    """A model that is loaded can't compute; the message names it."""


class Runtime(Protocol):
    """Opens sessions. Runtimes wrap each other: one for NPUs, one for prepared models, onnxruntime at the core."""

    def open(self, model: Path) -> Session:
        """Loads a model file of the cache layout, `…/TASK/NAME/TYPE/model.onnx`. Raises ModelDamaged, MemoryError."""
        ...

    def runs_on(self, model: Path) -> str:
        """What a model of the cache runs on, such as CPU, CUDA or OpenVINO."""
        ...
