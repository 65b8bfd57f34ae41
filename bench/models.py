# SPDX-License-Identifier: AGPL-3.0-only
"""Writes models of the real architectures' sizes with random weights: they see noise, but what they cost is real."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path

import numpy as np
from onnx import TensorProto
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bench.network import Network
from demo.graph import Shape
from demo.models import write_clip_files
from demo.pictures import LANDMARKS

NAME, FREE = "bench", "bench-free"
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"  # by how common they are
_RECIPE = 3  # of what is written; a change makes all models be written again
_DIM, _CONTEXT, _PATCH, _CROP, _PAD = 512, 77, 32, 112, 1
_TEXT: dict[str, Shape] = {"text": [1, _CONTEXT]}
_VECTOR: dict[str, Shape] = {"embedding": [1, _DIM]}

# The three faces that the detector reports: by stride the anchor's cell (column, row) and half the box's side in
# strides. In pixels of the 640 input: centres (120, 120), (240, 320), (480, 160), sides 80, 128, 192.
FACES = {8: ((15, 15), 5.0), 16: ((15, 20), 4.0), 32: ((15, 5), 3.0)}


@dataclass(frozen=True)
class Sizes:
    """By default the real ones. width, layers: of both halves of CLIP. detector: channels of the stem, the four stages,
    the neck, the head. recogniser: channels of the four stages."""

    width: int = 768
    layers: int = 12
    image: int = 224
    vocabulary: int = 250_002
    detector: tuple[int, ...] = (56, 56, 88, 88, 224, 56, 80)
    detector_blocks: tuple[int, ...] = (3, 4, 2, 3)
    recogniser: tuple[int, ...] = (64, 128, 256, 512)
    recogniser_blocks: tuple[int, ...] = (3, 4, 14, 3)


def build(folder: Path, sizes: Sizes = Sizes()) -> None:
    """Writes the models into a cache if they are not there already: 1.7 GB."""
    marker, recipe = folder / "recipe.txt", f"{_RECIPE} {sizes}\n"
    if marker.is_file() and marker.read_text() == recipe:
        return
    shutil.rmtree(folder, ignore_errors=True)
    for part, write in NETWORKS.items():
        write(Network(), sizes, folder / part / "model.onnx")
    text = {"context_length": _CONTEXT, "vocab_size": sizes.vocabulary}
    for name in (NAME, FREE):
        write_clip_files(folder / "clip" / name, _tokenizer(sizes.vocabulary), _DIM, sizes.image, text)
    marker.write_text(recipe)  # last, so that what was interrupted is done again


def environment(folder: Path, clip: str = NAME) -> dict[str, str]:
    """The variables that make the service use these models. folder: the cache. clip: NAME or FREE."""
    names = {"CLIP_VISUAL": clip, "CLIP_TEXTUAL": clip, "FACE_DETECTION": NAME, "FACE_RECOGNITION": NAME}
    return {"MACHINE_LEARNING_CACHE_FOLDER": str(folder)} | {f"{of}_MODEL_NAME": name for of, name in names.items()}


def _visual(net: Network, sizes: Sizes, path: Path) -> None:
    """ViT-B/32."""
    width, side = sizes.width, sizes.image // _PATCH
    weights = net.normal(width, 3, _PATCH, _PATCH, std=(3 * _PATCH**2) ** -0.5)
    x = net("Conv", "image", weights, kernel_shape=[_PATCH] * 2, strides=[_PATCH] * 2)
    x = net("Transpose", net("Reshape", x, [1, width, side**2]), perm=[0, 2, 1])
    x = net("Add", net("Concat", net.normal(1, 1, width), x, axis=1), net.normal(side**2 + 1, width))
    x = net.transformer(net.norm(x, width), side**2 + 1, width, sizes.layers, before=True)
    x = net.norm(net("Gather", x, 0, axis=1), width)
    net.unit(net.linear(x, width, _DIM, bias=False), "embedding")
    net.save(path, {"image": [1, 3, sizes.image, sizes.image]}, _VECTOR, check=False)


def _textual(net: Network, sizes: Sizes, path: Path) -> None:
    """XLM-RoBERTa base, the mean over all tokens but padding, and open_clip's projection in two steps."""
    width, middle = sizes.width, (sizes.width + _DIM) // 2
    # The largest first, while its copies have the memory to themselves.
    x = net("Add", net("Gather", net.normal(sizes.vocabulary, width), "text"), net.normal(_CONTEXT, width))
    padding = net("Equal", net("Cast", "text", to=TensorProto.INT64), _PAD)
    some = net("Cast", net("Not", padding), to=TensorProto.FLOAT)
    mask = net("Mul", net("Sub", 1.0, net("Unsqueeze", some, [1, 2])), float(np.finfo(np.float32).min))
    x = net.transformer(net.norm(x, width), _CONTEXT, width, sizes.layers, before=False, mask=mask)
    total = net("ReduceSum", net("Mul", x, net("Unsqueeze", some, [2])), [1], keepdims=0)
    x = net("Div", total, net("ReduceSum", some, [1], keepdims=1))
    x = net.gelu(net.linear(x, width, middle, bias=False))
    net.unit(net.linear(x, middle, _DIM, bias=False), "embedding")
    net.save(path, _TEXT, _VECTOR, TensorProto.INT32, check=False)


def _free_visual(net: Network, sizes: Sizes, path: Path) -> None:
    """Looks at the first 512 numbers; the constant gives black a direction too."""
    few = net("Slice", net("Reshape", "image", [1, -1]), [0], [_DIM], [1])
    net.unit(net("Add", few, 10 * np.eye(1, _DIM)), "embedding")
    net.save(path, {"image": [1, 3, sizes.image, sizes.image]}, _VECTOR, check=False)


def _free_textual(net: Network, _: Sizes, path: Path) -> None:
    net.unit(net("Pad", net("Cast", "text", to=TensorProto.FLOAT), [0, 0, 0, _DIM - _CONTEXT]), "embedding")
    net.save(path, _TEXT, _VECTOR, TensorProto.INT32, check=False)


def _tokenizer(vocabulary: int) -> Tokenizer:
    """XLM-RoBERTa's kind and size, for those cost time and memory too: all letters, Han, and made-up syllables."""
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


def _detector(net: Network, sizes: Sizes, path: Path) -> None:
    """SCRFD-10GF (arXiv 2105.04714): a ResNet, a PAFPN, a head for each stride. For sides of up to 640 pixels,
    multiples of 32; at 640x480 10.0 G multiplications, as the paper counts, and at the 640x640 of the service 13.3 G.
    """
    stem, *planes, neck, head = sizes.detector
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
        f"{kind}_{stride}": [f"anchors_{stride}", width] for kind, width in widths.items() for stride in FACES
    }
    net.save(path, {"input.1": [1, 3, "?", "?"]}, outputs, check=False)


def _head(net: Network, x: str, stride: int, neck: int, width: int) -> None:
    """What the photo says moves the outputs by a hundredth; where the face is stands in the biases."""
    (column, row), reach = FACES[stride]
    for inner in (neck, width, width):
        x = net.conv_relu(x, inner, width)
    surest = np.zeros((1, 2, 640 // stride, 640 // stride))
    surest[0, 0, row, column] = 12.0
    for kind, bias in {"score": [-6.0], "box": [reach] * 4, "points": list(reach * LANDMARKS.ravel())}.items():
        weights = net.normal(2 * len(bias), width, 3, 3, std=0.01 * (9 * width) ** -0.5)
        y = net("Conv", x, weights, np.tile(bias, 2), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        if kind == "score":
            y = net("Add", y, net("Slice", surest, [0, 0], net("Slice", net("Shape", y), [2], [4]), [2, 3]))
        rows = net("Reshape", net("Transpose", y, perm=[0, 2, 3, 1]), [-1, len(bias)])
        net("Sigmoid" if kind == "score" else "Identity", rows, out=f"{kind}_{stride}")


def _recogniser(net: Network, sizes: Sizes, path: Path) -> None:
    """IResNet-50: the normalisation that stands before a padded convolution stays, all others are part of theirs."""
    inner = sizes.recogniser[0]
    x = net.prelu(net.conv("input.1", 3, inner), inner)
    for outer, blocks in zip(sizes.recogniser, sizes.recogniser_blocks, strict=True):
        for block in range(blocks):
            y = net.conv(net.batch_norm(x, inner), inner, outer, gain=0.7)
            y = net.conv(net.prelu(y, outer), outer, outer, stride=1 if block else 2, gain=0.3)
            x = x if block else net.conv(x, inner, outer, kernel=1, stride=2, gain=0.7)
            x, inner = net("Add", y, x), outer
    x, inner = net("Flatten", net.batch_norm(x, inner)), inner * (_CROP // 16) ** 2
    net("Gemm", x, net.normal(_DIM, inner, std=inner**-0.5), net.normal(_DIM, std=0.02), transB=1, out="embedding")
    net.save(path, {"input.1": ["None", 3, _CROP, _CROP]}, {"embedding": ["None", _DIM]}, check=False)


NETWORKS: Mapping[str, Callable[[Network, Sizes, Path], None]] = {
    f"clip/{NAME}/visual": _visual,
    f"clip/{NAME}/textual": _textual,
    f"clip/{FREE}/visual": _free_visual,
    f"clip/{FREE}/textual": _free_textual,
    f"facial-recognition/{NAME}/detection": _detector,
    f"facial-recognition/{NAME}/recognition": _recogniser,
}
