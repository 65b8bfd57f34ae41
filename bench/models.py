# SPDX-License-Identifier: AGPL-3.0-only
"""Writes models of the real architectures' sizes with random weights: they see noise, but what they cost is real."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from demo.graph import Graph, Shape
from demo.pictures import LANDMARKS

NAME = "bench"
FREE = "bench-free"

# Of what is written; a change makes all models be written again.
_RECIPE = 1
_MARKER = "recipe.txt"
_PAD = 1
_DIM = 512
_CROP = 112

# The three faces that the detector reports: by stride the anchor's cell (column, row) and half the box's side in
# strides. In pixels of the 640 input: centres (120, 120), (240, 320), (480, 160), sides 80, 128, 192.
FACES = {8: ((15, 15), 5.0), 16: ((15, 20), 4.0), 32: ((15, 5), 3.0)}


@dataclass(frozen=True)
class Sizes:
    """How large the networks are; by default as the real ones.

    Both halves of CLIP: width, layers, heads. detector: channels of the stem, the four stages, the neck, the head.
    recogniser: channels of the four stages, the stem having those of the first.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    image: int = 224
    patch: int = 32
    vocabulary: int = 250_002
    context: int = 77
    positions: int = 514
    detector: tuple[int, ...] = (56, 56, 88, 88, 224, 56, 80)
    detector_blocks: tuple[int, ...] = (3, 4, 2, 3)
    recogniser: tuple[int, ...] = (64, 128, 256, 512)
    recogniser_blocks: tuple[int, ...] = (3, 4, 14, 3)


REAL = Sizes()


class _Network(Graph):
    """A graph with random weights, the same each time, that keep values near one however deep it is."""

    def __init__(self) -> None:
        super().__init__()
        self._random = np.random.default_rng(0)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> NDArray[np.float32]:
        values = self._random.standard_normal(shape, np.float32)
        values *= std
        values += mean
        return values

    def linear(self, x: str, inner: int, outer: int, gain: float = 1.0, bias: bool = True) -> str:
        product = self("MatMul", x, self.normal(inner, outer, std=gain * inner**-0.5))
        return self("Add", self.normal(outer, std=0.02), product) if bias else product

    def norm(self, x: str, width: int) -> str:
        scale, shift = self.normal(width, std=0.1, mean=1.0), self.normal(width, std=0.1)
        return self("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)

    def gelu(self, x: str) -> str:
        share = self("Add", self("Erf", self("Div", x, 2**0.5)), 1.0)
        return self("Mul", self("Mul", x, share), 0.5)

    def attention(self, q: str, k: str, v: str, mask: str, shape: Sequence[int]) -> str:
        """shape: of q, k and v, (1, tokens, heads, channels of a head)."""
        q, v = (self("Transpose", self("Reshape", x, shape), perm=[0, 2, 1, 3]) for x in (q, v))
        k = self("Transpose", self("Reshape", k, shape), perm=[0, 2, 3, 1])
        scores = self("Div", self("MatMul", q, k), shape[3] ** 0.5)
        weights = self("Softmax", self("Add", scores, mask) if mask else scores, axis=-1)
        mixed = self("Transpose", self("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self("Reshape", mixed, [1, shape[1], shape[2] * shape[3]])

    def layers(self, x: str, tokens: int, sizes: Sizes, *, before: bool, mask: str = "") -> str:
        """Transformer layers, normalised `before` attention and MLP as CLIP does, or after as BERT does."""
        width, shape = sizes.width, (1, tokens, sizes.heads, sizes.width // sizes.heads)
        for _ in range(sizes.layers):
            y = self.norm(x, width) if before else x
            q, k, v = (self.linear(y, width, width) for _ in range(3))
            y = self.linear(self.attention(q, k, v, mask, shape), width, width, 0.3)
            x = self("Add", x, y)
            x = x if before else self.norm(x, width)
            y = self.norm(x, width) if before else x
            y = self.linear(self.gelu(self.linear(y, width, 4 * width)), 4 * width, width, 0.3)
            x = self("Add", x, y)
            x = x if before else self.norm(x, width)
        return x

    def conv(self, x: str, inner: int, outer: int, kernel: int = 3, stride: int = 1, gain: float = 1.0) -> str:
        weights = self.normal(outer, inner, kernel, kernel, std=gain * (2 / (inner * kernel**2)) ** 0.5)
        pads, strides = [kernel // 2] * 4, [stride] * 2
        shape = [kernel, kernel]
        return self("Conv", x, weights, self.normal(outer, std=0.02), kernel_shape=shape, pads=pads, strides=strides)

    def conv_relu(self, x: str, inner: int, outer: int, stride: int = 1) -> str:
        return self("Relu", self.conv(x, inner, outer, stride=stride))

    def batch_norm(self, x: str, width: int) -> str:
        scale, mean = self.normal(width, std=0.1, mean=1.0), self.normal(width, std=0.02)
        return self("BatchNormalization", x, scale, self.normal(width, std=0.02), mean, np.ones(width), epsilon=1e-5)

    def prelu(self, x: str, width: int) -> str:
        return self("PRelu", x, self.normal(width, 1, 1, std=0.05, mean=0.25))


def environment(folder: Path, clip: str = NAME) -> dict[str, str]:
    """The variables that make the service use these models. folder: the cache. clip: NAME or FREE."""
    return {
        "MACHINE_LEARNING_CACHE_FOLDER": str(folder),
        "CLIP_VISUAL_MODEL_NAME": clip,
        "CLIP_TEXTUAL_MODEL_NAME": clip,
        "FACE_DETECTION_MODEL_NAME": NAME,
        "FACE_RECOGNITION_MODEL_NAME": NAME,
    }


def build(folder: Path, sizes: Sizes = REAL) -> None:
    """Writes CLIP, detector and recogniser into a cache, where they are not there already: 1.7 GB."""
    _once(folder / "clip" / NAME, sizes, _clip)
    _once(folder / "facial-recognition" / NAME, sizes, _faces)


def build_free(folder: Path, sizes: Sizes = REAL) -> None:
    """Writes a CLIP that costs nothing into a cache, where it is not there already: it looks at 512 numbers at most."""
    _once(folder / "clip" / FREE, sizes, _free_clip)


def _once(folder: Path, sizes: Sizes, write: Callable[[Path, Sizes], None]) -> None:
    marker, recipe = folder / _MARKER, f"{_RECIPE} {sizes}\n"
    if marker.is_file() and marker.read_text() == recipe:
        return
    shutil.rmtree(folder, ignore_errors=True)
    write(folder, sizes)
    marker.write_text(recipe)  # last, so that what was interrupted is done again


def _clip(folder: Path, sizes: Sizes) -> None:
    _visual(folder / "visual" / "model.onnx", sizes)
    _textual(folder / "textual" / "model.onnx", sizes)
    _clip_files(folder, sizes)


def _faces(folder: Path, sizes: Sizes) -> None:
    _detector(folder / "detection" / "model.onnx", sizes)
    _recogniser(folder / "recognition" / "model.onnx", sizes)


def _visual(path: Path, sizes: Sizes) -> None:
    """ViT-B/32."""
    net, width, patch, side = _Network(), sizes.width, sizes.patch, sizes.image // sizes.patch
    weights = net.normal(width, 3, patch, patch, std=(3 * patch**2) ** -0.5)
    x = net("Conv", "image", weights, kernel_shape=[patch] * 2, strides=[patch] * 2)
    x = net("Transpose", net("Reshape", x, [1, width, side**2]), perm=[0, 2, 1])
    x = net("Add", net("Concat", net.normal(1, 1, width), x, axis=1), net.normal(side**2 + 1, width))
    x = net.layers(net.norm(x, width), side**2 + 1, sizes, before=True)
    x = net.norm(net("Gather", x, 0, axis=1), width)
    net.unit(net.linear(x, width, _DIM, bias=False), "embedding")
    net.save(path, {"image": [1, 3, sizes.image, sizes.image]}, {"embedding": [1, _DIM]}, check=sizes != REAL)


def _textual(path: Path, sizes: Sizes) -> None:
    """XLM-RoBERTa base, the mean over all tokens but padding, and open_clip's projection in two steps."""
    net, width = _Network(), sizes.width
    # The largest first, while its copies have the memory to themselves.
    words = net("Gather", net.normal(sizes.vocabulary, width), "text")
    seen = net("Cast", net("Not", net("Equal", net("Cast", "text", to=TensorProto.INT64), _PAD)), to=TensorProto.INT64)
    place = net("Add", net("Mul", net("CumSum", seen, 1), seen), _PAD)
    kind = net.normal(1, width)
    x = net("Add", net("Add", words, kind), net("Gather", net.normal(sizes.positions, width), place))
    some = net("Cast", seen, to=TensorProto.FLOAT)
    mask = net("Mul", net("Sub", 1.0, net("Unsqueeze", some, [1, 2])), float(np.finfo(np.float32).min))
    x = net.layers(net.norm(x, width), sizes.context, sizes, before=False, mask=mask)
    total = net("ReduceSum", net("Mul", x, net("Unsqueeze", some, [2])), [1], keepdims=0)
    x = net("Div", total, net("ReduceSum", some, [1], keepdims=1))
    middle = (width + _DIM) // 2
    x = net.gelu(net.linear(x, width, middle, bias=False))
    net.unit(net.linear(x, middle, _DIM, bias=False), "embedding")
    net.save(path, {"text": [1, sizes.context]}, {"embedding": [1, _DIM]}, TensorProto.INT32, check=sizes != REAL)


def _clip_files(folder: Path, sizes: Sizes) -> None:
    preprocess = {
        "size": [sizes.image, sizes.image],
        "mode": "RGB",
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    text = {"context_length": sizes.context, "vocab_size": sizes.vocabulary}
    for name, content in {
        "config.json": {"embed_dim": _DIM, "vision_cfg": {"image_size": sizes.image}, "text_cfg": text},
        "visual/preprocess_cfg.json": preprocess,
        "textual/tokenizer_config.json": {"pad_token": "<pad>", "unk_token": "<unk>"},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    _tokenizer(sizes.vocabulary).save(str(folder / "textual" / "tokenizer.json"), pretty=False)


def _tokenizer(vocabulary: int) -> Tokenizer:
    """XLM-RoBERTa's kind and size, for those cost time and memory too: all letters, Han, and made-up syllables."""
    alphabet = [*map(chr, range(33, 127)), "▁", *map(chr, range(0x4E00, 0xA000))]
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    made = ("▁" + "".join(piece) for length in (1, 2, 3, 4) for piece in product(letters, repeat=length))
    pieces = islice((*alphabet, *made), vocabulary - 5)
    scored = [(piece, -8.0 - i * 8 / vocabulary) for i, piece in enumerate(pieces)]
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = Tokenizer(models.Unigram([*special, *scored, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    tokenizer.add_special_tokens([name for name, _ in special])
    return tokenizer


def _detector(path: Path, sizes: Sizes) -> None:
    """SCRFD-10GF (arXiv 2105.04714): a ResNet, a PAFPN, a head for each stride. For sides of up to 640 pixels,
    multiples of 32; at 640x480 10.0 G multiplications, as the paper counts, and at the 640x640 of the service 13.3 G.
    """
    net, (stem, *planes, neck, head) = _Network(), sizes.detector
    x = net.conv_relu("input.1", 3, stem // 2, stride=2)
    x = net.conv_relu(net.conv_relu(x, stem // 2, stem // 2), stem // 2, stem)
    x, inner = net("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), stem
    levels = []
    for stage, (outer, blocks) in enumerate(zip(planes, sizes.detector_blocks, strict=True)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.conv(net.conv_relu(x, inner, outer, stride=stride), outer, outer, gain=0.4)
            if stride == 2:
                x = net("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
            if inner != outer:
                x = net.conv(x, inner, outer, kernel=1, gain=0.7)
            x, inner = net("Relu", net("Add", x, y)), outer
        levels.append(x)
    fine = [net.conv(x, width, neck, kernel=1, gain=0.7) for x, width in zip(levels[1:], planes[1:], strict=True)]
    for i in (1, 0):
        scales = np.array([1, 1, 2, 2], np.float32)
        larger = net(
            "Resize",
            fine[i + 1],
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        fine[i] = net("Add", fine[i], larger)
    fine = [net.conv(x, neck, neck, gain=0.7) for x in fine]
    for i in (1, 2):
        fine[i] = net("Add", fine[i], net.conv(fine[i - 1], neck, neck, stride=2, gain=0.7))
    fine = [fine[0], *(net.conv(x, neck, neck, gain=0.7) for x in fine[1:])]
    found = [_head(net, x, stride, neck, head) for x, stride in zip(fine, FACES, strict=True)]
    outputs: dict[str, Shape] = {
        name: [f"anchors_{stride}", width]
        for kind, width in (("score", 1), ("box", 4), ("points", 10))
        for stride, name in zip(FACES, (names[kind] for names in found), strict=True)
    }
    net.save(path, {"input.1": [1, 3, "?", "?"]}, outputs)


def _head(net: _Network, x: str, stride: int, neck: int, width: int) -> dict[str, str]:
    """What the photo says moves the outputs by a hundredth; where the face is stands in the biases."""
    (column, row), reach = FACES[stride]
    for inner in (neck, width, width):
        x = net.conv_relu(x, inner, width)
    surest = np.zeros((1, 2, 640 // stride, 640 // stride))
    surest[0, 0, row, column] = 12.0
    biases = {"score": [-6.0], "box": [reach] * 4, "points": list(reach * LANDMARKS.ravel())}
    names = {}
    for kind, bias in biases.items():
        weights = net.normal(2 * len(bias), width, 3, 3, std=0.01 * (9 * width) ** -0.5)
        y = net("Conv", x, weights, np.tile(bias, 2), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        if kind == "score":
            extent = net("Slice", net("Shape", y), [2], [4])
            y = net("Add", y, net("Slice", surest, [0, 0], extent, [2, 3]))
        rows = net("Reshape", net("Transpose", y, perm=[0, 2, 3, 1]), [-1, len(bias)])
        names[kind] = net("Sigmoid" if kind == "score" else "Identity", rows, out=f"{kind}_{stride}")
    return names


def _recogniser(path: Path, sizes: Sizes) -> None:
    """IResNet-50: the normalisation that stands before a padded convolution stays, all others are part of theirs."""
    net, inner = _Network(), sizes.recogniser[0]
    x = net.prelu(net.conv("input.1", 3, inner), inner)
    for outer, blocks in zip(sizes.recogniser, sizes.recogniser_blocks, strict=True):
        for block in range(blocks):
            stride = 1 if block else 2
            y = net.conv(net.batch_norm(x, inner), inner, outer, gain=0.7)
            y = net.conv(net.prelu(y, outer), outer, outer, stride=stride, gain=0.3)
            x = x if block else net.conv(x, inner, outer, kernel=1, stride=2, gain=0.7)
            x, inner = net("Add", y, x), outer
    x, inner = net("Flatten", net.batch_norm(x, inner)), inner * (_CROP // 16) ** 2
    weights = net.normal(_DIM, inner, std=inner**-0.5)
    net("Gemm", x, weights, net.normal(_DIM, std=0.02), transB=1, out="embedding")
    net.save(path, {"input.1": ["None", 3, _CROP, _CROP]}, {"embedding": ["None", _DIM]}, check=sizes != REAL)


def _free_clip(folder: Path, sizes: Sizes) -> None:
    sees, reads = Graph(), Graph()
    few = sees("Slice", sees("Reshape", "image", [1, -1]), [0], [_DIM], [1])
    ids = reads("Cast", "text", to=TensorProto.FLOAT)
    many = reads("Pad", ids, [0, 0, 0, _DIM - sizes.context])
    always = 10 * np.eye(1, _DIM)  # or black could have no direction at all
    sees.unit(sees("Add", few, always), "embedding")
    reads.unit(reads("Add", many, always), "embedding")
    outputs: dict[str, Shape] = {"embedding": [1, _DIM]}
    sees.save(folder / "visual" / "model.onnx", {"image": [1, 3, sizes.image, sizes.image]}, outputs)
    reads.save(folder / "textual" / "model.onnx", {"text": [1, sizes.context]}, outputs, TensorProto.INT32)
    _clip_files(folder, sizes)
