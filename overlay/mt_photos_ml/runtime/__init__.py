# SPDX-License-Identifier: AGPL-3.0-only
"""The seam: a Runtime opens a Session for a model file. Nothing outside this folder knows which library runs it."""

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
        """Of its numbers, such as tensor(float)."""


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
    def cores(self) -> int:
        """That an inference takes; 0 if a device computes it."""

    @property
    def few_shapes(self) -> bool:
        """Whether a task is to pad its inputs to the shapes that it declared, since planning one takes seconds."""

    def declare(self, shapes: Sequence[Sequence[int]]) -> None:
        """Says which shapes inputs have if there are to be few. What has another shape runs on the processor."""

    def choose(self, feed: Tensors, is_busy: bool) -> "Session":
        """The session that is to run this: itself, the same model on one thread if other inferences run beside it, or
        on a device if that is ready for these shapes."""

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        """All outputs, in the model's order."""


class PlainSession:
    """What a session has that is always chosen itself, and takes inputs of any shape."""

    few_shapes = False

    def declare(self, shapes: Sequence[Sequence[int]]) -> None:
        pass

    def choose(self, feed: Tensors, is_busy: bool) -> "Session":
        return cast("Session", self)


class ModelDamaged(RuntimeError):
    """The model file is incomplete, or not a model."""


class InferenceError(RuntimeError):
    """An inference failed; the message names the model."""


class Runtime(Protocol):
    """Opens sessions. Runtimes wrap each other: for NPUs, for devices that plan shapes, for prepared models; the
    innermost is onnxruntime on the processor."""

    def open(self, model: Path) -> Session:
        """Loads a model file of the cache layout, `…/TASK/NAME/TYPE/model.onnx`. Raises ModelDamaged, MemoryError."""

    def runs_on(self, model: Path) -> str:
        """The device that a model runs on, such as CPU, CUDA or OpenVINO."""
