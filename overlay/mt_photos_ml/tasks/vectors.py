# SPDX-License-Identifier: AGPL-3.0-only
"""What CLIP and faces answer with: vectors of unit length."""

import numpy as np
from numpy.typing import NDArray


class NotAVector(RuntimeError):
    """A model's answer has no direction."""


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D) at length one. Raises NotAVector where one has none, as half precision can make of any photo."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise NotAVector("the model's answer is not a vector; if it runs on a graphics card, try the processor")
    return np.asarray(vectors / lengths, np.float32)
