# SPDX-License-Identifier: AGPL-3.0-only
"""Runtime opens a Session for a model file. Code outside this folder doesn't know which library runs the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

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

    @property
    def type(self) -> str:
        """The type of its numbers, such as tensor(float)."""


class Session(Protocol):
    """A loaded model. Any number of threads may run it at once."""

    @property
    def inputs(self) -> Sequence[Node]: ...

    @property
    def outputs(self) -> Sequence[Node]:
        """Empty if the runtime doesn't provide them."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata in the model file, such as the characters that a text recogniser knows."""

    @property
    def cores(self) -> int:
        """CPU cores that an inference takes; 0 if a device computes it."""

    @property
    def few_shapes(self) -> bool:
        """Whether a task must pad its inputs to the shapes that it declared, because planning a shape takes seconds."""

    def declare(self, shapes: Sequence[Sequence[int]]) -> None:
        """Declares the shapes of padded inputs. Inputs of any other shape run on the processor."""

    def choose(self, feed: Tensors, is_busy: bool) -> "Session":
        """The session to run these inputs: this one, the same model on one thread if the cores are busy, or the one on
        the device if it is ready for these shapes."""

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        """All outputs, in the model's order."""


class PlainSession:
    """Base of a session that takes inputs of any shape and always chooses itself."""

    few_shapes = False

    def declare(self, shapes: Sequence[Sequence[int]]) -> None:
        pass

    def choose(self, feed: Tensors, is_busy: bool) -> "Session":
        return cast("Session", self)


class ModelDamaged(RuntimeError):
    """The model file is incomplete or not a model."""


class InferenceError(RuntimeError):
    """An inference failed; the message names the model."""


class Runtime(Protocol):
    """Opens sessions. Runtimes wrap each other: NPUs, devices, prepared models and, innermost, onnxruntime on the
    processor."""

    def open(self, model: Path) -> Session:
        """Loads a model file of the cache layout, `…/TASK/NAME/TYPE/model.onnx`. Raises ModelDamaged, MemoryError."""

    def runs_on(self, model: Path) -> str:
        """The device that a model runs on, such as CPU, CUDA or OpenVINO."""
