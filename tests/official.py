# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in for the official service of MT Photos, as far as its index depends on it: files of the same names and
shapes with random weights, preprocessing written from its description, and its tokenizer from the package cn-clip."""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto
from PIL import Image

from demo.graph import Graph

Float = NDArray[np.float32]

LENGTH = 52
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_SPEC = importlib.util.find_spec("cn_clip")
CN_CLIP = Path((_SPEC.submodule_search_locations or [""])[0] if _SPEC else "") / "clip"


@lru_cache
def tokenizer() -> Any:
    """Chinese-CLIP's tokenizer, loaded without its package, which would import torch."""
    spec = importlib.util.spec_from_file_location("bert_tokenizer", CN_CLIP / "bert_tokenizer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FullTokenizer(str(CN_CLIP / "vocab.txt"))


def tokens(text: str) -> list[int]:
    """(52,) token ids of a text."""
    bert = tokenizer()
    words = bert.convert_tokens_to_ids(bert.tokenize(text))[: LENGTH - 2]
    ids = [bert.vocab["[CLS]"], *words, bert.vocab["[SEP]"]]
    return ids + [0] * (LENGTH - len(ids))


def install(folder: Path, *, name: str = "vit-b-16", side: int = 224, dim: int = 512, precision: str = "fp32") -> Path:
    """Writes the folder /app as `docker cp` takes it out of the official service's onnx image. Returns the folder."""
    rng = np.random.default_rng(3)
    photo = Graph()
    cells = photo("AveragePool", "image", kernel_shape=[16, 16], strides=[16, 16])
    flat = photo("Reshape", cells, [1, 3 * (side // 16) ** 2])
    photo("MatMul", flat, rng.normal(size=(3 * (side // 16) ** 2, dim)), out="unnorm_image_features")
    path = folder / "utils" / f"{name}.img.{precision}.onnx"
    photo.save(path, {"image": [1, 3, side, side]}, {"unnorm_image_features": [1, dim]})
    text = Graph()
    places = text("Mul", text("Gather", rng.normal(size=(21_128, 8)), "text"), rng.normal(size=(1, LENGTH, 1)))
    text(
        "MatMul",
        text("Reshape", places, [1, LENGTH * 8]),
        rng.normal(size=(LENGTH * 8, dim)),
        out="unnorm_text_features",
    )
    text.save(
        path.with_name(f"{name}.txt.{precision}.onnx"),
        {"text": [1, LENGTH]},
        {"unnorm_text_features": [1, dim]},
        TensorProto.INT64,
    )
    (folder / "vocab.txt").write_bytes((CN_CLIP / "vocab.txt").read_bytes())
    return folder


def see(folder: Path, photo: bytes) -> Float:
    """(D,) what the official service answers on /clip/img. OpenCV decodes the photo, so EXIF turns it and blue comes
    first; Pillow squashes it as if it were RGB."""
    pixels = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    model = onnxruntime.InferenceSession(folder / "utils" / "vit-b-16.img.fp32.onnx")
    small = Image.fromarray(np.asarray(pixels, np.uint8)).resize((224, 224), Image.Resampling.BICUBIC)
    values = ((np.asarray(small, np.float32) / 255 - _MEAN) / _STD).transpose(2, 0, 1)[None]
    return np.asarray(model.run(None, {"image": values.astype(np.float32)})[0][0], np.float32)


def read(folder: Path, text: str) -> Float:
    """(D,) what the official service answers on /clip/txt."""
    model = onnxruntime.InferenceSession(folder / "utils" / "vit-b-16.txt.fp32.onnx")
    return np.asarray(model.run(None, {"text": np.array([tokens(text)], np.int64)})[0][0], np.float32)
