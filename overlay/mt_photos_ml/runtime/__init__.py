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

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        """All outputs in the model's order."""
        ...


class RuntimeSession(Session, Protocol):
    """A session as a runtime opens it."""

    @property
    def one_thread(self) -> Session | None:
        """The same model on one thread, to be run beside others; None where that would take its memory twice."""
        ...


class ModelDamaged(RuntimeError):
    """The model file is not whole, or no model at all."""


class InferenceError(RuntimeError):
    """A model that is loaded can't compute; the message names it."""


class Runtime(Protocol):
    """Opens sessions."""

    @property
    def holds_a_device(self) -> bool:
        """Whether memory of a graphics card is held that only the end of the process gives back."""
        ...

    def open(self, model: Path) -> RuntimeSession:
        """Loads a model file of the cache layout, `…/TASK/NAME/TYPE/model.onnx`. Raises ModelDamaged, MemoryError."""
        ...

    def prepare(self, model: Path, shape: Sequence[int]) -> bool:
        """Makes a form of the model that loads at once and takes little memory. True where open() now finds it anew.

        shape: of an input that the service gives the model. Takes seconds to minutes, in a process that yields.
        """
        ...

    def trim_memory(self) -> None:
        """Returns to the system the memory that sessions computed with and don't need at the moment."""
        ...

    def close(self) -> None:
        """Ends what a prepare() in another thread may be busy with."""
        ...

    @property
    def is_accelerated(self) -> bool:
        """Whether models run on something else than the processor."""
        ...

    def runs_on(self, model: Path) -> str:
        """What a model of the cache runs on, such as CPU, CUDA or OpenVINO."""
        ...

    @property
    def refused(self) -> Sequence[str]:
        """The devices that are there and can't be used, each with why, as far as that is known yet."""
        ...

    def describe(self) -> str:
        """The runtime, its version and the devices it uses, in one line for a person."""
        ...
