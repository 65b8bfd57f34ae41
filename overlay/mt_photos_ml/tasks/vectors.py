# SPDX-License-Identifier: AGPL-3.0-only
"""Vectors of unit length, for CLIP and faces."""

import numpy as np
from numpy.typing import NDArray


class NotAVector(RuntimeError):
    """A model's output is zero or not finite."""


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales vectors (N, D) to unit length. Raises NotAVector if one is zero or not finite, which FP16 can cause."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise NotAVector("the model returned no valid vector; on a graphics card, use FP32 or the processor")
    return np.asarray(vectors / lengths, np.float32)
