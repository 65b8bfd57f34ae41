# SPDX-License-Identifier: AGPL-3.0-only
"""Writes models of the real architectures and sizes with random weights: the answers are noise, the cost is real."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from demo.graph import Graph, Shape
from demo.models import build_clip, write_clip_files
from demo.pictures import LANDMARKS

NAME, FREE = "bench", "bench-free"
VOCABULARY = 250_002
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"  # the most common first
_RECIPE = 5  # the version of the models; a change rewrites them all
_DIM, _CONTEXT, _IMAGE, _PATCH, _CROP = 512, 77, 224, 32, 112

# The three faces that the detector reports: by stride the anchor's cell (column, row) and half the box's side in
# strides. In pixels of the 640 input: centres (120, 120), (240, 320), (480, 160), sides 80, 128, 192.
FACES = {8: ((15, 15), 5.0), 16: ((15, 20), 4.0), 32: ((15, 5), 3.0)}


class Network(Graph):
    """A graph with random weights, the same each time, that keep values near one at any depth.

    shrink: divides the real widths, for tests.
    """

    def __init__(self, shrink: int = 1) -> None:
        super().__init__()
        self.shrink, self._random = shrink, np.random.default_rng(0)

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

    def transformer(self, x: str, tokens: int, width: int, *, before: bool) -> str:
        """Twelve layers, normalised `before` attention and MLP as CLIP does, or after as BERT does."""

        def attend(x: str) -> str:
            q, k, v = (self("Reshape", self.linear(x, width, width), [1, tokens, -1, 64]) for _ in range(3))
            q, v = (self("Transpose", x, perm=[0, 2, 1, 3]) for x in (q, v))
            scores = self("Div", self("MatMul", q, self("Transpose", k, perm=[0, 2, 3, 1])), 64**0.5)
            mixed = self("Transpose", self("MatMul", self("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
            return self.linear(self("Reshape", mixed, [1, tokens, width]), width, width, 0.3)

        def think(x: str) -> str:
            return self.linear(self.gelu(self.linear(x, width, 4 * width)), 4 * width, width, 0.3)

        for block in (attend, think) * (12 // self.shrink):
            y = self("Add", x, block(self.norm(x, width) if before else x))
            x = y if before else self.norm(y, width)
        return x

    def conv(self, x: str, inner: int, outer: int, kernel: int = 3, stride: int = 1, gain: float = 1.0) -> str:
        weights = self.normal(outer, inner, kernel, kernel, std=gain * (2 / (inner * kernel**2)) ** 0.5)
        shape: dict[str, Any] = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "strides": [stride] * 2}
        return self("Conv", x, weights, self.normal(outer, std=0.02), **shape)

    def conv_relu(self, x: str, inner: int, outer: int, stride: int = 1) -> str:
        return self("Relu", self.conv(x, inner, outer, stride=stride))

    def stages(self, x: str, inner: int, channels: Sequence[int], blocks_of: Sequence[int]) -> list[str]:
        """The output of each stage of a ResNet, which halves the sides. blocks_of: how many blocks each stage has."""
        found = []
        for outer, blocks in zip(channels, blocks_of, strict=True):
            for block in range(blocks):
                stride = 1 if block else 2
                y = self.conv(self.conv_relu(x, inner, outer, stride=stride), outer, outer, gain=0.4)
                x = x if block else self.conv(x, inner, outer, kernel=1, stride=2, gain=0.7)
                x, inner = self("Relu", self("Add", x, y)), outer
            found.append(x)
        return found


def build(folder: Path, shrink: int = 1) -> None:
    """Writes the models into a cache if they are not there already: 1.7 GB."""
    marker = folder / f"recipe {_RECIPE}.{shrink}"
    if marker.is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for part, write in NETWORKS.items():
        write(Network(shrink), folder / part / "model.onnx")
    vocabulary = VOCABULARY // shrink
    text = {"context_length": _CONTEXT, "vocab_size": vocabulary}
    write_clip_files(folder / "clip" / NAME, _tokenizer(vocabulary), _DIM, _IMAGE, text)
    build_clip(folder / "clip" / FREE)
    marker.touch()  # last, so that an interrupted build is repeated


def environment(folder: Path, clip: str = NAME) -> dict[str, str]:
    """The variables that make the service use these models. folder: the cache. clip: NAME or FREE."""
    names = {"CLIP_VISUAL": clip, "CLIP_TEXTUAL": clip, "FACE_DETECTION": NAME, "FACE_RECOGNITION": NAME}
    return {"MACHINE_LEARNING_CACHE_FOLDER": str(folder)} | {f"{of}_MODEL_NAME": name for of, name in names.items()}


def _visual(net: Network, path: Path) -> None:
    """ViT-B/32."""
    width, cells = 768 // net.shrink, (_IMAGE // _PATCH) ** 2
    weights = net.normal(width, 3, _PATCH, _PATCH, std=(3 * _PATCH**2) ** -0.5)
    x = net("Conv", "image", weights, kernel_shape=[_PATCH] * 2, strides=[_PATCH] * 2)
    x = net("Transpose", net("Reshape", x, [1, width, cells]), perm=[0, 2, 1])
    x = net("Add", net("Concat", net.normal(1, 1, width), x, axis=1), net.normal(cells + 1, width))
    x = net.transformer(net.norm(x, width), cells + 1, width, before=True)
    x = net.norm(net("Gather", x, 0, axis=1), width)
    net.unit(net.linear(x, width, _DIM, bias=False), "embedding")
    net.save(path, {"image": [1, 3, _IMAGE, _IMAGE]}, {"embedding": [1, _DIM]}, check=False)


def _textual(net: Network, path: Path) -> None:
    """XLM-RoBERTa base, of which the first token's output goes through open_clip's projection in two steps."""
    width = 768 // net.shrink
    # The largest weights first, while there is memory for their copies.
    x = net("Gather", net.normal(VOCABULARY // net.shrink, width), "text")
    x = net.norm(net("Add", x, net.normal(_CONTEXT, width)), width)
    x = net("Gather", net.transformer(x, _CONTEXT, width, before=False), 0, axis=1)
    x = net.gelu(net.linear(x, width, 640, bias=False))
    net.unit(net.linear(x, 640, _DIM, bias=False), "embedding")
    net.save(path, {"text": [1, _CONTEXT]}, {"embedding": [1, _DIM]}, TensorProto.INT32, check=False)


def _tokenizer(vocabulary: int) -> Tokenizer:
    """A tokenizer of XLM-RoBERTa's kind and size, which cost time and memory: letters, Han characters, syllables."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    made = ("▁" + "".join(piece) for length in (1, 2, 3, 4) for piece in product(_LETTERS, repeat=length))
    pieces = islice(chain(map(chr, range(33, 127)), "▁", map(chr, range(0x4E00, 0xA000)), made), vocabulary - 4)
    scored = [(piece, -8.0 - i * 8 / vocabulary) for i, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram([*((name, 0.0) for name in special), *scored], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    tokenizer.add_special_tokens(special)
    return tokenizer


def _detector(net: Network, path: Path) -> None:
    """SCRFD-10GF (arXiv 2105.04714): a ResNet, a PAFPN, a head for each stride. 13.3 G multiplications for the 640x640
    of the service, 10.0 G for the paper's 640x480."""
    stem, *planes, neck, head = (channels // net.shrink for channels in (56, 56, 88, 88, 224, 56, 80))
    x = net.conv_relu("input.1", 3, stem // 2, stride=2)
    x = net.conv_relu(net.conv_relu(x, stem // 2, stem // 2), stem // 2, stem)
    levels = net.stages(x, stem, planes, (3, 4, 2, 3))
    fine = [net.conv(x, width, neck, kernel=1, gain=0.7) for x, width in zip(levels[1:], planes[1:], strict=True)]
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    for i in (1, 0):
        fine[i] = net("Add", fine[i], net("Resize", fine[i + 1], "", np.array([1, 1, 2, 2], np.float32), **nearest))
    fine = [net.conv(x, neck, neck, gain=0.7) for x in fine]
    for i in (1, 2):
        fine[i] = net("Add", fine[i], net.conv(fine[i - 1], neck, neck, stride=2, gain=0.7))
    fine = [fine[0], *(net.conv(x, neck, neck, gain=0.7) for x in fine[1:])]
    for x, stride in zip(fine, FACES, strict=True):
        _head(net, x, stride, neck, head)
    widths = {"score": 1, "box": 4, "points": 10}
    outputs: dict[str, Shape] = {
        f"{kind}_{n}": [2 * (640 // n) ** 2, width] for kind, width in widths.items() for n in FACES
    }
    net.save(path, {"input.1": [1, 3, "?", "?"]}, outputs, check=False)


def _head(net: Network, x: str, stride: int, neck: int, width: int) -> None:
    """The photo moves the outputs by about a hundredth; the biases say where the faces are."""
    (column, row), reach = FACES[stride]
    for inner in (neck, width, width):
        x = net.conv_relu(x, inner, width)
    surest = np.zeros((1, 2, 640 // stride, 640 // stride))
    surest[0, 0, row, column] = 12.0
    for kind, bias in {"score": [-6.0], "box": [reach] * 4, "points": list(reach * LANDMARKS.ravel())}.items():
        weights = net.normal(2 * len(bias), width, 3, 3, std=0.01 * (9 * width) ** -0.5)
        y = net("Conv", x, weights, np.tile(bias, 2), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        y = net("Add", y, surest) if kind == "score" else y
        rows = net("Reshape", net("Transpose", y, perm=[0, 2, 3, 1]), [-1, len(bias)])
        net("Sigmoid" if kind == "score" else "Identity", rows, out=f"{kind}_{stride}")


def _recogniser(net: Network, path: Path) -> None:
    """IResNet-50 without normalisation layers and PReLU slopes, which cost almost nothing."""
    stem, *planes = (channels // net.shrink for channels in (64, 64, 128, 256, 512))
    x = net.stages(net.conv_relu("input.1", 3, stem), stem, planes, (3, 4, 14, 3))[-1]
    x, inner = net("Flatten", x), planes[-1] * (_CROP // 16) ** 2
    net("Gemm", x, net.normal(_DIM, inner, std=inner**-0.5), net.normal(_DIM, std=0.02), transB=1, out="embedding")
    net.save(path, {"input.1": ["None", 3, _CROP, _CROP]}, {"embedding": ["None", _DIM]}, check=False)


NETWORKS: Mapping[str, Callable[[Network, Path], None]] = {
    f"clip/{NAME}/visual": _visual,
    f"clip/{NAME}/textual": _textual,
    f"facial-recognition/{NAME}/detection": _detector,
    f"facial-recognition/{NAME}/recognition": _recogniser,
}
