# SPDX-License-Identifier: AGPL-3.0-only
"""Writes small ONNX models with real interfaces and real behaviour: CLIP for colours, detector and embedder for drawn
faces. Their graphs are written by hand; nothing is trained."""

import json
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from demo.graph import Graph, Shape
from demo.pictures import COLOURS, CROP_CENTRE, CROP_RADIUS, FEATURES, HIGH, LANDMARKS, LOW, REGIONS, SKIN, skin_share

Floats = NDArray[np.float32]

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# The shades of a colour that have its name, as factors; (1, 0.75) for the others.
_SHADES = {"black": (1.0,), "white": (1.0,), "brown": (1.0, 1.15, 0.7), "grey": (1.0, 1.2, 0.75), "orange": (1.0, 0.9)}
_WORDS = {
    "red": "red 红 紅",
    "orange": "orange 橙 橘",
    "yellow": "yellow 黄 黃",
    "green": "green 绿 綠",
    "cyan": "cyan 青",
    "blue": "blue 蓝 藍",
    "purple": "purple violet 紫",
    "pink": "pink 粉",
    "brown": "brown 棕 褐",
    "black": "black 黑",
    "white": "white 白",
    "grey": "grey gray 灰",
}
# Half sizes in pixels of the windows in which each stride's two anchors look for a face: all multiples of 4, each at
# least the largest face it is for plus half a stride, and together covering radii of 12 to 152.
_WINDOWS = {8: (24, 36), 16: (52, 76), 32: (116, 168)}
# Pixels by which the measured radius is too short, because skin's blurred edges don't count as skin.
_EDGE = 0.55


def build_clip(
    folder: Path,
    *,
    dim: int = 512,
    size: int = 224,
    context_length: int = 77,
    mclip: bool = False,
    canonicalize: bool = False,
) -> None:
    """Writes a CLIP model that knows colours to `folder` (…/clip/NAME): photos [1,3,size,size] and texts
    [1,context_length] become unit vectors [1,dim], which are closer if more of the photo has the text's colour."""
    _colours_of_photo(dim, size, folder / "visual" / "model.onnx")
    _colours_of_text(dim, context_length, mclip, folder / "textual" / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel(_vocabulary(), unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    text: dict[str, Any] = {"context_length": context_length, "vocab_size": len(_vocabulary())}
    if canonicalize:
        text["tokenizer_kwargs"] = {"clean": "canonicalize"}
    write_clip_files(folder, tokenizer, dim, size, text)


def write_clip_files(folder: Path, tokenizer: Tokenizer, dim: int, size: int, text: dict[str, Any]) -> None:
    """Writes the files beside a CLIP model's graphs. size: side of its input in pixels. text: its text_cfg."""
    tokenizer.save(str(folder / "textual" / "tokenizer.json"), pretty=False)
    preprocess = {
        "size": [size, size],
        "mode": "RGB",
        "mean": _MEAN,
        "std": _STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    for name, content in {
        "config.json": {"embed_dim": dim, "vision_cfg": {"image_size": size}, "text_cfg": text},
        "visual/preprocess_cfg.json": preprocess,
        "textual/tokenizer_config.json": {"pad_token": "<pad>", "unk_token": "<unk>"},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def build_faces(folder: Path, *, batch: int | None = None) -> None:
    """Writes a detector (SCRFD's interface) and an embedder (ArcFace's) of drawn faces to `folder`
    (…/facial-recognition/NAME). The embedder takes [batch,3,112,112], any number if `batch` is None."""
    _detector(folder / "detection" / "model.onnx")
    _embedder(folder / "recognition" / "model.onnx", batch if batch is not None else "None")


def _vocabulary() -> dict[str, int]:
    words = ["<pad>", "<unk>", "色", *" ".join(_WORDS.values()).split()]
    return {word: i for i, word in enumerate(words)}


def _directions(count: int, dim: int) -> Floats:
    """`count` orthonormal rows of `dim`, the same each time."""
    square = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, count)))[0]
    return np.ascontiguousarray(square.T, np.float32)


def _colours_of_photo(dim: int, size: int, path: Path) -> None:
    shades = [(i, f) for i, name in enumerate(COLOURS) for f in _SHADES.get(name, (1.0, 0.75))]
    of_colour = np.eye(len(COLOURS))[[i for i, _ in shades]]
    prototypes = np.array([np.array(list(COLOURS.values())[i]) / 255 * f for i, f in shades])
    # Softmax over minus the squared distance to each prototype; the pixel's own square cancels out.
    sharpness = 60.0
    weights = 2 * sharpness * prototypes * _STD
    bias = sharpness * (2 * prototypes @ _MEAN - (prototypes**2).sum(1))
    graph, step = Graph(), max(1, size // 28)
    small = graph("AveragePool", "image", kernel_shape=[step, step], strides=[step, step])
    shares = graph("Softmax", graph("Conv", small, weights[..., None, None], bias), axis=1)
    histogram = graph("MatMul", graph("ReduceMean", shares, axes=[2, 3], keepdims=0), of_colour)
    graph.unit(graph("MatMul", histogram, _directions(len(COLOURS), dim)), "embedding")
    graph.save(path, {"image": [1, 3, size, size]}, {"embedding": [1, dim]})


def _colours_of_text(dim: int, length: int, mclip: bool, path: Path) -> None:
    vocabulary = _vocabulary()
    table = np.zeros((len(vocabulary), len(COLOURS)))
    table[vocabulary["<unk>"]] = 0.01
    for i, words in enumerate(_WORDS.values()):
        table[[vocabulary[word] for word in words.split()], i] = 1
    table[vocabulary["粉"]] *= 4  # 粉红 is pink
    graph, ids = Graph(), "input_ids" if mclip else "text"
    tokens = graph("Gather", table, ids)
    inputs: dict[str, Shape] = {ids: [1, length]}
    if mclip:
        inputs["attention_mask"] = [1, length]
        mask = graph("Cast", "attention_mask", to=TensorProto.FLOAT)
        tokens = graph("Mul", tokens, graph("Unsqueeze", mask, [2]))
    # The constant gives an empty text a direction too.
    histogram = graph("Add", graph("ReduceSum", tokens, [1], keepdims=0), 0.001)
    graph.unit(graph("MatMul", histogram, _directions(len(COLOURS), dim)), "embedding")
    graph.save(path, inputs, {"embedding": [1, dim]}, TensorProto.INT32)


def _detector(path: Path) -> None:
    """Area and centroid of the skin around each anchor give a disc; points on and about that disc tell if it is a face:
    skin just inside its edge and between the features, none just outside nor at the features."""
    graph = Graph()
    key = (np.array(SKIN).reshape(1, 3, 1, 1) - 127.5) / 128
    distance = graph("ReduceL2", graph("Sub", "input.1", key), axes=[1])
    skin = graph("Clip", graph("Add", graph("Mul", distance, -5.0), 1.75), np.float32(0), np.float32(1))
    extent = graph("Cast", graph("Gather", graph("Shape", skin), [3, 2]), to=TensorProto.FLOAT)
    coarse = graph("AveragePool", skin, kernel_shape=[4, 4], strides=[4, 4])
    x, y = (graph("Sub", graph("Mul", at, 4.0), 2.0) for at in _positions(graph, coarse))
    moments = graph("Concat", coarse, graph("Mul", coarse, x), graph("Mul", coarse, y), axis=1)

    ring = [(cos(a), sin(a)) for a in np.linspace(0, 2 * pi, 16, endpoint=False)]
    inside = [(0.92 * x, 0.92 * y) for x, y in ring] + [(0.0, -0.6), (0.0, -0.25), (0.0, 0.37)]
    outside = [(1.05 * x, 1.05 * y) for x, y in ring]
    marks = [(x, y) for x, y, _, _ in FEATURES]
    probes = np.array([*inside, *outside, *marks])
    groups = [len(inside), len(outside), len(marks)]
    weights = np.repeat(np.diag([1, -1, -1] / np.array(groups)), groups, axis=0)

    share, drop = skin_share()
    found: dict[str, list[str]] = {"score": [], "box": [], "points": []}
    for stride, windows in _WINDOWS.items():
        # [2,3,h,w]: for each of a cell's two anchors the mean over its window of skin, skin*x, skin*y.
        pooled = graph("Concat", *(_window_mean(graph, moments, half, stride) for half in windows), axis=0)
        mass, position = graph("Slice", pooled, [0], [1], [1]), graph("Slice", pooled, [1], [3], [1])
        area = graph("Mul", mass, np.reshape([4.0 * half**2 for half in windows], (2, 1, 1, 1)))
        radius = graph("Add", graph("Sqrt", graph("Mul", area, 1 / (pi * share))), _EDGE)
        centroid = graph("Div", position, graph("Max", mass, 1e-6))
        lift = graph("Mul", radius, np.reshape([0, -drop], (1, 2, 1, 1)))
        centre = graph("Add", centroid, lift)
        cells = graph("Concat", *_positions(graph, mass), axis=1)
        anchor = graph("Mul", graph("Sub", cells, 1.0), float(stride))
        # A disc that reaches the edge of its window may be cut off there, and its measures wrong.
        off = graph("ReduceMax", graph("Abs", graph("Sub", centre, anchor)), axes=[1])
        edge = graph("Sub", np.reshape(windows, (2, 1, 1, 1)) + 1.0, graph("Add", radius, off))
        # From here on one row [x, y, radius] an anchor; each cell's two are adjacent.
        offset = _rows(graph, graph("Div", graph("Sub", centre, anchor), float(stride)), 2)
        reach = _rows(graph, graph("Div", radius, float(stride)), 1)
        box = graph("Concat", graph("Sub", reach, offset), graph("Add", reach, offset), axis=1)
        corners = graph("Add", graph("Mul", reach, LANDMARKS.reshape(1, 10)), graph("Tile", offset, [1, 5]))
        spread = graph("Mul", graph("Reshape", _rows(graph, radius, 1), [1, -1, 1, 1]), probes[None, None])
        at = graph("Add", graph("Reshape", _rows(graph, centre, 2), [1, -1, 1, 2]), spread)
        grid = graph("Sub", graph("Mul", graph("Div", at, extent), 2.0), 1.0)
        seen = graph("Squeeze", graph("GridSample", skin, grid), [0, 1])
        match = graph("Add", graph("MatMul", seen, weights), [0.0, 1.0, 1.0])
        # not ReduceMin of Concat, which OpenVINO 2025.3 takes for a Min of the two
        worst = graph("Min", graph("ReduceMin", match, axes=[1], keepdims=1), _rows(graph, edge, 1))
        worst = graph("Max", worst, 0.3)  # below this, the Sigmoid of some devices differs in the fourth digit
        score = graph("Sigmoid", graph("Mul", graph("Sub", worst, 0.7), 20.0))
        for name, value in zip(found, (score, box, corners), strict=True):
            found[name].append(graph("Identity", value, out=f"{name}_{stride}"))
    widths = {"score": 1, "box": 4, "points": 10}
    outputs: dict[str, Shape] = {n: [f"anchors_{n.split('_')[1]}", widths[k]] for k, ns in found.items() for n in ns}
    graph.save(path, {"input.1": [1, 3, "height", "width"]}, outputs)


def _positions(graph: Graph, like: str) -> tuple[str, str]:
    """Column and row of each cell of `like` [n,1,h,w], counted from one."""
    one = graph("Add", graph("Mul", like, 0.0), 1.0)
    return graph("CumSum", one, 3), graph("CumSum", one, 2)


def _window_mean(graph: Graph, x: str, half: int, stride: int) -> str:
    """Means over squares of 2*half pixels about each anchor; x has one value for 4x4 pixels."""
    start, step, end = half // 4, stride // 4, (half - stride) // 4
    return graph(
        "AveragePool",
        x,
        kernel_shape=[2 * start] * 2,
        strides=[step] * 2,
        pads=[start, start, end, end],
        count_include_pad=1,
    )


def _rows(graph: Graph, x: str, width: int) -> str:
    """[2,width,h,w] as [h*w*2,width]."""
    return graph("Reshape", graph("Transpose", x, perm=[2, 3, 0, 1]), [-1, width])


def _embedder(path: Path, batch: int | str) -> None:
    """The mean colours of the five regions that tell identities apart, minus the mean face's."""
    y, x = np.mgrid[:112, :112] + 0.5
    masks = np.zeros((112 * 112, len(REGIONS)))
    for i, discs in enumerate(REGIONS):
        for dx, dy, r in discs:
            cx, cy = CROP_CENTRE[0] + dx * CROP_RADIUS, CROP_CENTRE[1] + dy * CROP_RADIUS
            masks[:, i] += (np.hypot(x - cx, y - cy) < r * CROP_RADIUS).ravel()
    graph = Graph()
    pixels = graph("Reshape", "input.1", [0, 3, -1])
    colours = graph("Sub", graph("MatMul", pixels, masks / masks.sum(0)), ((LOW + HIGH) / 2 - 127.5) / 127.5)
    flat = graph("Flatten", colours)
    graph("MatMul", flat, 8 * _directions(3 * len(REGIONS), 512), out="embedding")
    graph.save(path, {"input.1": [batch, 3, 112, 112]}, {"embedding": [batch, 512]})
