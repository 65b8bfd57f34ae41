# SPDX-License-Identifier: AGPL-3.0-only
"""Checks that a model is of the kind that a task needs: an intact file may hold another model."""

from collections.abc import Sequence

from ..runtime import ModelDamaged, Node, Session

Shape = tuple[int | None, ...]
"""The shape of an input or an output; None: any length."""


def expect(session: Session, inputs: Sequence[Shape], outputs: Sequence[Shape | None]) -> None:
    """Raises ModelDamaged if the model has other inputs or outputs. None: an output of any shape."""
    outputs = outputs if session.outputs else ()  # some runtimes don't tell
    for what, nodes, shapes in (("inputs", session.inputs, inputs), ("outputs", session.outputs, outputs)):
        if len(nodes) != len(shapes) or not all(map(_fits, nodes, shapes)):
            found = ", ".join(f"{node.name} {list(node.shape)}" for node in nodes)
            raise ModelDamaged(f"it is another kind of model: its {what} are {found}")


def _fits(node: Node, shape: Shape | None) -> bool:
    if shape is None or len(shape) != len(node.shape):
        return shape is None
    lengths = zip(node.shape, shape, strict=True)
    return all(length is None or not isinstance(there, int) or there in (length, -1) for there, length in lengths)
