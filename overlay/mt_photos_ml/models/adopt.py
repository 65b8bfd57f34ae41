# SPDX-License-Identifier: AGPL-3.0-only
"""Converts the Chinese-CLIP models of MT Photos' official service to this service's layout."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime import ModelDamaged, Session
from ..runtime.ort import OrtRuntime
from .catalog import CLIP, CN_CLIP

RGB = "-rgb"
"""Suffix of the model that gets its channels in the right order."""

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_LONGEST_WORD = 200  # characters; a longer word is unknown


class CannotAdopt(ValueError):
    """The files are not such a model; the message says why."""


@dataclass(frozen=True)
class Export:
    """The two files that Chinese-CLIP's export writes, `NAME.img.fp32.onnx` and `NAME.txt.fp32.onnx`, and the
    vocabulary. side: of the photo, in pixels. length: of a text, in tokens. dim: length of a vector."""

    name: str
    visual: Path
    textual: Path
    vocabulary: Path
    side: int
    length: int
    dim: int


def find_exports(folder: Path) -> list[Export]:
    """Finds, opens and checks the models anywhere below a folder. Prefers FP32 if a model is there in two precisions.
    Raises CannotAdopt."""
    vocabulary = next(iter(sorted(folder.rglob("vocab.txt"))), None)
    visuals = {path.name.partition(".img.")[0]: path for path in sorted(folder.rglob("*.img.fp??.onnx"))}
    if not visuals:
        raise CannotAdopt(f"{folder}: expected files such as vit-b-16.img.fp32.onnx and vit-b-16.txt.fp32.onnx in it")
    if not vocabulary:
        raise CannotAdopt(
            f"{folder}: expected vocab.txt in it, as the official service and the package cn-clip have it"
        )
    return [_checked(name, visual, vocabulary) for name, visual in visuals.items()]


def _checked(name: str, visual: Path, vocabulary: Path) -> Export:
    textual = visual.with_name(visual.name.replace(".img.", ".txt."))
    photo, feature = _shapes(visual, "image", "unnorm_image_features")
    text, other = _shapes(textual, "text", "unnorm_text_features")
    lengths = [*photo[1:], *text[1:], *feature[1:], *other[1:]]
    is_right = (len(photo), len(text), len(feature), len(other)) == (4, 2, 2, 2) and feature[1] == other[1]
    if not is_right or photo[1] != 3 or photo[2] != photo[3] or not all(isinstance(length, int) for length in lengths):
        raise CannotAdopt(f"{name}: expected one image of 3 channels, one text, and two vectors of the same length")
    return Export(name, visual, textual, vocabulary, photo[2], text[1], feature[1])


def _shapes(path: Path, input: str, output: str) -> tuple[Any, Any]:
    if not path.is_file():
        raise CannotAdopt(f"{path.parent}: expected {path.name} in it")
    try:
        session: Session = OrtRuntime(1).open(path)
    except ModelDamaged as error:
        raise CannotAdopt(f"{path}: {error}") from None
    nodes = [*session.inputs, *session.outputs]
    if [node.name for node in nodes] != [input, output]:
        found = ", ".join(node.name for node in nodes)
        raise CannotAdopt(f"{path}: expected a model with the input {input} and the output {output}, not {found}")
    return session.inputs[0].shape, session.outputs[0].shape


def adopt(export: Export, cache: Path) -> Iterator[Path]:
    """Writes the model into the cache under two names, with its channels in BGR order and in RGB order, and yields the
    folders. Both share the model files if the file system has hard links."""
    in_bgr = cache / CLIP / f"{CN_CLIP}{export.name}"
    for folder, channels in ((in_bgr, "BGR"), (in_bgr.with_name(in_bgr.name + RGB), "RGB")):
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        for type, path in (("visual", export.visual), ("textual", export.textual)):
            (part / type).mkdir(parents=True)
            for file in (path, *path.parent.glob(f"{path.name}.*")):  # weights may be in files beside it
                name = "model.onnx" if file == path else file.name
                if channels == "BGR":
                    shutil.copyfile(file, part / type / name)
                else:
                    _link_or_copy(in_bgr / type / name, part / type / name)
        for name, content in _configuration(export, channels).items():
            (part / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        _tokenizer(export.vocabulary).save(str(part / "textual/tokenizer.json"), pretty=False)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        yield folder


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)


def _configuration(export: Export, channels: str) -> Mapping[str, Mapping[str, Any]]:
    size = [export.side, export.side]
    text = {"context_length": export.length}
    return {
        "config.json": {"embed_dim": export.dim, "vision_cfg": {"image_size": export.side}, "text_cfg": text},
        "visual/preprocess_cfg.json": {
            "size": size, "mean": _MEAN, "std": _STD, "interpolation": "bicubic",
            "resize": "squash", "channels": channels,
        },
        "textual/tokenizer_config.json": {"pad_token": "[PAD]"},
    }  # fmt: skip


def _tokenizer(vocabulary: Path) -> Any:
    """BERT's uncased tokenizer: splits words and Chinese characters into pieces, and adds [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = models.WordPiece.read_file(str(vocabulary))
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, words[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer
