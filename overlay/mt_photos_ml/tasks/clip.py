# SPDX-License-Identifier: AGPL-3.0-only
"""CLIP: turns a photo or a text into a vector. The model's own files say how to preprocess."""

import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..models.languages import flores_code, flores_of_script
from ..photo import Photo
from ..runtime import Session
from .shapes import expect
from .vectors import normalize

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Float = NDArray[np.float32]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Visual:
    """The image encoder. size: side of the square input, in pixels. mean, std: per channel, for values from 0 to 1.
    squashes: resizes the whole photo to a square instead of cropping its centre. is_bgr: channels are in BGR order."""

    session: Session
    size: int
    mean: Float
    std: Float
    filter: Image.Resampling
    squashes: bool = False
    is_bgr: bool = False

    @classmethod
    def load(cls, session: Session, folder: Path) -> Self:
        """Reads preprocess_cfg.json in the folder. Raises KeyError or ValueError if that file is unusable."""
        config = _read_json(folder / "preprocess_cfg.json")
        side = int(np.ravel(config["size"])[0])
        mean, std = (np.array(config[name], np.float32) for name in ("mean", "std"))
        filter = Image.Resampling[str(config["interpolation"]).upper()]
        # our own keys: the base image ignores mode and resize_mode, and crops even if SigLIP's file says squash
        squashes = _one_of(config, "resize", ("crop", "squash")) == "squash"
        is_bgr = _one_of(config, "channels", ("RGB", "BGR")) == "BGR"
        expect(session, [(None, 3, side, side)], [(None, None)])
        session.declare([(1, 3, side, side)])
        return cls(session, side, mean, std, filter, squashes, is_bgr)

    @property
    def example_shape(self) -> tuple[int, ...]:
        return 1, 3, self.size, self.size


@dataclass(frozen=True)
class Textual:
    """The text encoder. length: of the input, in tokens. canonicalize: it wants no punctuation and no capitals.
    speaks_flores: it wants the FLORES-200 code of the language before the text."""

    session: Session
    tokenizer: "Tokenizer"
    length: int
    canonicalize: bool
    speaks_flores: bool

    @classmethod
    def load(cls, session: Session, folder: Path) -> Self:
        """Reads tokenizer.json and tokenizer_config.json in the folder, and config.json in its parent."""
        from tokenizers import Tokenizer

        text = _read_json(folder.parent / "config.json")["text_cfg"]
        pad = _read_json(folder / "tokenizer_config.json")["pad_token"]
        pad = pad["content"] if isinstance(pad, dict) else pad
        length = int(text.get("context_length", 77))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_padding(length=length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
        tokenizer.enable_truncation(max_length=length)
        canonicalize = (text.get("tokenizer_kwargs") or {}).get("clean") == "canonicalize"
        expect(session, [(None, length)] * min(len(session.inputs), 2), [(None, None)])
        session.declare([(1, length)])
        return cls(session, tokenizer, length, canonicalize, folder.parent.name.startswith("nllb"))

    @property
    def example_shape(self) -> tuple[int, ...]:
        return 1, self.length


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not an object")
    return content


def _one_of(config: dict[str, Any], name: str, values: tuple[str, ...]) -> str:
    """The value of this key; the first of these values if the key is missing."""
    if (value := config.get(name, values[0])) not in values:
        raise ValueError(f"{name} is {value}, not {' or '.join(values)}")
    return str(value)


def encode_photo(photo: Photo, visual: Visual) -> Float:
    """Returns a (D,) vector of unit length."""
    pixels = _preprocess(photo, visual)
    return _unit_vector(visual.session.run({visual.session.inputs[0].name: pixels}))


def _preprocess(photo: Photo, visual: Visual) -> Float:
    """Returns (1, 3, S, S), normalized: the shorter side scaled to S and the centre cropped, or the whole photo
    squashed if the model wants that. Rounds as the base image does, because users' databases hold its vectors."""
    box = None if visual.squashes else _centre(photo, visual.size)
    rgb = photo.resized((visual.size, visual.size), box=box, filter=visual.filter)
    pixels = rgb[:, :, ::-1] if visual.is_bgr else rgb
    scaled = pixels.astype(np.float32) * (1 / (255 * visual.std)) - visual.mean / visual.std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def _centre(photo: Photo, side: int) -> tuple[float, float, float, float]:
    """The box, in pixels of the photo, that is the centre square once the shorter side is scaled to `side`."""
    short = min(photo.width, photo.height)
    width, height = int(photo.width / short * side), int(photo.height / short * side)
    left, top = int(width / 2 - side / 2), int(height / 2 - side / 2)
    x, y = photo.width / width, photo.height / height
    return left * x, top * y, (left + side) * x, (top + side) * y


def encode_text(text: str, textual: Textual, language: str | None = None) -> Float:
    """Returns a (D,) vector of unit length. language: of the text, for nllb models; None: guessed from the script."""
    encoding = textual.tokenizer.encode(_clean(text, textual, language))
    numbers = np.int64 if "int64" in textual.session.inputs[0].type else np.int32
    ids, mask = np.array([[encoding.ids], [encoding.attention_mask]], numbers)
    names = [node.name for node in textual.session.inputs]
    feed = {"input_ids": ids, "attention_mask": mask} if "attention_mask" in names else {names[0]: ids}
    return _unit_vector(textual.session.run(feed))


def _clean(text: str, textual: Textual, language: str | None) -> str:
    text = " ".join(text.split())
    if textual.canonicalize:
        text = text.translate(_NO_PUNCTUATION).lower()
    if textual.speaks_flores:
        text = ((language and flores_code(language)) or flores_of_script(text)) + text
    return text


def _unit_vector(outputs: list[NDArray[Any]]) -> Float:
    return normalize(np.asarray(outputs[0], np.float32).reshape(1, -1)).ravel()
