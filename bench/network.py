# SPDX-License-Identifier: AGPL-3.0-only
"""The layers of which the benchmark's models are built, with random weights."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.graph import Graph


class Network(Graph):
    """A graph with random weights, the same each time, that keep values near one however deep it is."""

    def __init__(self) -> None:
        super().__init__()
        self._random = np.random.default_rng(0)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> NDArray[np.float32]:
        values = self._random.standard_normal(shape, np.float32)
        return np.add(np.multiply(values, std, out=values), mean, out=values)

    def linear(self, x: str, inner: int, outer: int, gain: float = 1.0, bias: bool = True) -> str:
        product = self("MatMul", x, self.normal(inner, outer, std=gain * inner**-0.5))
        return self("Add", self.normal(outer, std=0.02), product) if bias else product

    def norm(self, x: str, width: int) -> str:
        scale, shift = self.normal(width, std=0.1, mean=1.0), self.normal(width, std=0.1)
        return self("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)

    def gelu(self, x: str) -> str:
        return self("Mul", self("Mul", x, self("Add", self("Erf", self("Div", x, 2**0.5)), 1.0)), 0.5)

    def transformer(self, x: str, tokens: int, width: int, layers: int, *, before: bool, mask: str = "") -> str:
        """Layers, normalised `before` attention and MLP as CLIP does, or after as BERT does."""

        def attend(x: str) -> str:
            q, k, v = (self("Reshape", self.linear(x, width, width), [1, tokens, -1, 64]) for _ in range(3))
            q, v = (self("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, v))
            scores = self("Div", self("MatMul", q, self("Transpose", k, perm=[0, 2, 3, 1])), 64**0.5)
            weights = self("Softmax", self("Add", scores, mask) if mask else scores, axis=-1)
            mixed = self("Transpose", self("MatMul", weights, v), perm=[0, 2, 1, 3])
            return self.linear(self("Reshape", mixed, [1, tokens, width]), width, width, 0.3)

        def think(x: str) -> str:
            return self.linear(self.gelu(self.linear(x, width, 4 * width)), 4 * width, width, 0.3)

        for block in (attend, think) * layers:
            y = self("Add", x, block(self.norm(x, width) if before else x))
            x = y if before else self.norm(y, width)
        return x

    def conv(self, x: str, inner: int, outer: int, kernel: int = 3, stride: int = 1, gain: float = 1.0) -> str:
        weights = self.normal(outer, inner, kernel, kernel, std=gain * (2 / (inner * kernel**2)) ** 0.5)
        shape: dict[str, Any] = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "strides": [stride] * 2}
        return self("Conv", x, weights, self.normal(outer, std=0.02), **shape)

    def conv_relu(self, x: str, inner: int, outer: int, stride: int = 1) -> str:
        return self("Relu", self.conv(x, inner, outer, stride=stride))

    def batch_norm(self, x: str, width: int) -> str:
        scale, mean = self.normal(width, std=0.1, mean=1.0), self.normal(width, std=0.02)
        return self("BatchNormalization", x, scale, self.normal(width, std=0.02), mean, np.ones(width), epsilon=1e-5)

    def prelu(self, x: str, width: int) -> str:
        return self("PRelu", x, self.normal(width, 1, 1, std=0.05, mean=0.25))
