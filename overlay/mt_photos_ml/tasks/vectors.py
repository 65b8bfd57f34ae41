# SPDX-License-Identifier: AGPL-3.0-only
"""Vectors of unit length, for CLIP and faces."""

import numpy as np
from numpy.typing import NDArray


class NotAVector(RuntimeError):
    """A model's output has no direction."""


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D) of unit length. Raises NotAVector if one is zero or not finite, which half precision can cause."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise NotAVector("the model's answer is not a vector; if it runs on a graphics card, try the processor")
    return np.asarray(vectors / lengths, np.float32)
