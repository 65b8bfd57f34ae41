# SPDX-License-Identifier: AGPL-3.0-only
"""Built-in inputs for a model, to compare the answers of two sessions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Node, Tensors

Shapes = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, type of number (such as "float32") and shape of each input, sorted by name."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


def shapes_like(inputs: Sequence[Node], like: Sequence[int]) -> Shapes:
    """The model's own shapes, with free axes as long as in `like`. Raises ValueError if the inputs don't fit."""
    shapes = list[tuple[str, str, tuple[int, ...]]]()
    for node in inputs:
        if node.type not in _DTYPES:
            raise ValueError(f"its input {node.name} is a {node.type}")
        if len(node.shape) != len(like):
            raise ValueError(f"its input {node.name} has {len(node.shape)} axes, but the service gives it {len(like)}")
        lengths = (n if isinstance(n, int) and n > 0 else free for n, free in zip(node.shape, like, strict=True))
        shapes.append((node.name, _DTYPES[node.type], tuple(lengths)))
    return tuple(sorted(shapes))


def shapes_of(feed: Tensors) -> Shapes:
    """The shapes of these inputs."""
    return tuple(sorted((name, str(value.dtype), value.shape) for name, value in feed.items()))


def example(shapes: Shapes) -> Tensors:
    """Random inputs of these shapes, the same on each call."""
    random = np.random.default_rng(0)
    return {
        name: (random.normal(size=shape) if "float" in dtype else random.integers(0, 2, shape)).astype(dtype)
        for name, dtype, shape in shapes
    }


def cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The cosine of two outputs of the same shape; -1 if they can't be compared."""
    is_number = np.isfinite(expected)
    if found.shape != expected.shape or not np.array_equal(np.isfinite(found), is_number):
        return -1.0
    a, b = found[is_number].astype(np.float64), expected[is_number].astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else float(not (a.any() or b.any()))
