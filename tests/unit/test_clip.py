# SPDX-License-Identifier: AGPL-3.0-only
"""Photos and texts become the same model input as in the base image, and vectors that match each other."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from demo.models import build_clip
from demo.pictures import colour_photo, group_photo
from mt_photos_ml.photo import Photo
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.tasks import clip
from photos import encoded, turned
from recorded import Recorded

LANGUAGES = ["zho_Hans", "jpn_Jpan", "kor_Hang", "rus_Cyrl", "eng_Latn", "fra_Latn", "zho_Hant", "yue_Hant"]
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True)
class Pair:
    """A CLIP model's two halves, and their sessions, which record their input."""

    visual: clip.Visual
    textual: clip.Textual
    seen: Recorded
    read: Recorded

    @classmethod
    def load(cls, folder: Path) -> "Pair":
        runtime = OrtRuntime()
        seen, read = (Recorded(runtime.open(folder / kind / "model.onnx")) for kind in ("visual", "textual"))
        visual, textual = clip.Visual.load(seen, folder / "visual"), clip.Textual.load(read, folder / "textual")
        return cls(visual, textual, seen, read)

    def ids(self, text: str, language: str | None = None) -> list[int]:
        """The token ids that the model gets for a text, without the padding."""
        clip.encode_text(text, self.textual, language)
        (ids,) = next(iter(self.read.feeds[-1].values()))
        return [int(i) for i in ids if i != self.textual.tokenizer.token_to_id("<pad>")]

    def words(self, text: str, language: str | None = None) -> list[str | None]:
        return [self.textual.tokenizer.id_to_token(i) for i in self.ids(text, language)]


def _reference(data: bytes, size: int) -> NDArray[np.float32]:
    """The base image's preprocessing of the whole decode."""
    image = Image.open(BytesIO(data)).convert("RGB")
    width, height = image.size
    to = (size, int(height / width * size)) if width < height else (int(width / height * size), size)
    image = image.resize(to, Image.Resampling.BICUBIC)
    left, top = int(image.width / 2 - size / 2), int(image.height / 2 - size / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    normal = (pixels - [0.48145466, 0.4578275, 0.40821073]) / DEVIATION
    return np.asarray(normal.transpose(2, 0, 1)[None], np.float32)


def _psnr(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(-10 * np.log10(np.mean(((one - other) * DEVIATION.reshape(3, 1, 1)) ** 2) + 1e-12))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("clip") / "demo-colours"
    build_clip(folder)
    return Pair.load(folder)


@pytest.fixture
def nllb(tmp_path: Path) -> Pair:
    """A model that needs to be told the language; its tokenizer knows the codes."""
    folder = tmp_path / "nllb-clip-base-siglip__v1"
    build_clip(folder)
    known = ["<pad>", "<unk>", *LANGUAGES, *"飞机红色海辺사과самолетplane"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(dict.fromkeys(known))}, "<unk>"))
    tokenizer.add_special_tokens(LANGUAGES)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "textual" / "tokenizer.json"))
    return Pair.load(folder)


@pytest.mark.parametrize("size", [(4000, 3000), (1080, 1440), (4800, 600), (333, 1000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_model_input_is_the_same_as_from_a_whole_decode(colours: Pair, kind: str, size: tuple[int, int]) -> None:
    data = encoded(group_photo(size, range(3), seed=1)[0], kind, quality=90)
    vector = clip.encode_photo(Photo.open(data), colours.visual)
    given, whole = colours.seen.feeds[-1]["image"], _reference(data, 224)
    assert given.shape == (1, 3, 224, 224)
    assert given.dtype == np.float32
    assert _psnr(given, whole) >= 50
    (other,) = colours.seen.session.run({"image": whole})[0]
    assert vector @ other / np.linalg.norm(other) >= 0.9999


@pytest.mark.parametrize("size", [(224, 224), (225, 224), (100, 37), (1, 1), (1, 400), (447, 301)])
def test_small_and_odd_sizes_are_rounded_as_in_the_base_image(colours: Pair, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    vector = clip.encode_photo(Photo.open(data), colours.visual)
    np.testing.assert_allclose(colours.seen.feeds[-1]["image"], _reference(data, 224), atol=0.04)
    assert (vector.shape, vector.dtype.name) == ((512,), "float32")
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("size", [(200, 300), (29, 56), (56, 29)])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_photo_gives_the_same_input_as_the_upright_one(
    colours: Pair, orientation: int, size: tuple[int, int]
) -> None:
    """At any size: in floating point, 29 / 29 * 224 / (224 / 29) is slightly more than 29."""
    seen = colour_photo("orange", size)
    clip.encode_photo(Photo.open(turned(seen, orientation, "PNG")), colours.visual)
    assert _psnr(colours.seen.feeds[-1]["image"], _reference(encoded(seen, "PNG"), 224)) >= 50


def test_sizes_and_normalisation_come_from_the_models_own_files(tmp_path: Path) -> None:
    build_clip(tmp_path / "other", size=56, dim=640, context_length=5)
    own = {"size": 56, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1.0], "interpolation": "bilinear"}
    (tmp_path / "other" / "visual" / "preprocess_cfg.json").write_text(json.dumps(own))
    pad = {"pad_token": {"content": "<pad>", "lstrip": False, "special": True}}  # an object, not a string
    (tmp_path / "other" / "textual" / "tokenizer_config.json").write_text(json.dumps(pad))
    pair = Pair.load(tmp_path / "other")
    photo = Photo.open(encoded(Image.new("RGB", (90, 60), (255, 0, 51)), "PNG"))
    assert clip.encode_photo(photo, pair.visual).shape == (640,)
    given = pair.seen.feeds[-1]["image"]
    assert given.shape == (1, 3, 56, 56)
    np.testing.assert_allclose(given[0].mean(axis=(1, 2)), [2.0, -1.0, -0.3], atol=1e-5)
    assert pair.visual.filter == Image.Resampling.BILINEAR
    assert (pair.words("red " * 9), pair.words("green")) == (["red"] * 5, ["green"])
    assert pair.read.feeds[-1]["text"].shape == (1, 5)


@pytest.mark.parametrize("text", ["red green", " \t red \n\n  green\r\n", "\u3000red\u00a0green"])
def test_white_space_is_collapsed_and_stripped(colours: Pair, text: str) -> None:
    assert colours.words(text) == ["red", "green"]


@pytest.mark.parametrize(("words", "length"), [(0, 0), (1, 1), (77, 77), (500, 77)])
def test_a_text_is_padded_and_cut_to_the_models_length(colours: Pair, words: int, length: int) -> None:
    assert colours.ids(" ".join(["red"] * words)) == colours.ids("red") * length
    given = colours.read.feeds[-2]["text"]
    assert (given.shape, given.dtype.name) == ((1, 77), "int32")
    assert np.all(given[0, length:] == colours.textual.tokenizer.token_to_id("<pad>"))


@pytest.mark.parametrize(
    ("canonical", "text", "words"),
    [(True, "(Red, GREEN!)", ["red", "green"]), (False, "(red, Green", ["<unk>", "red", "<unk>", "<unk>"])],
)
def test_punctuation_and_case_are_removed_if_the_config_says_so(
    tmp_path: Path, canonical: bool, text: str, words: list[str]
) -> None:
    build_clip(tmp_path / "model", canonicalize=canonical)
    path = tmp_path / "model" / "textual" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": None}))  # it would change the case itself
    assert Pair.load(tmp_path / "model").words(text) == words


def test_an_mclip_model_gets_its_two_inputs(tmp_path: Path) -> None:
    build_clip(tmp_path / "XLM", mclip=True)
    pair = Pair.load(tmp_path / "XLM")
    assert pair.words("red green") == ["red", "green"]
    given = pair.read.feeds[-1]
    two = ((1, 77), "int32")
    assert {name: (value.shape, value.dtype.name) for name, value in given.items()} == {
        "input_ids": two,
        "attention_mask": two,
    }
    assert given["attention_mask"].sum() == 2


@pytest.mark.parametrize(
    ("text", "language", "code"),
    [
        ("飞机", None, "zho_Hans"),
        ("サッカー", None, "jpn_Jpan"),
        ("사과", None, "kor_Hang"),
        ("самолет", None, "rus_Cyrl"),
        ("plane", None, "eng_Latn"),
        ("红色 plane 飞机", None, "eng_Latn"),
        ("红色的飞机在天上 A380", None, "zho_Hans"),
        ("", None, "eng_Latn"),
        ("ⴰⵣⵓⵍ", None, "eng_Latn"),
        ("飞机", "fr-CA", "fra_Latn"),
        ("plane", "zh-TW", "zho_Hant"),
        ("plane", "zh_CN", "zho_Hans"),
        ("plane", "zh", "zho_Hans"),
        ("飞机", "yue_Hant", "yue_Hant"),
    ],
)
def test_nllb_gets_the_language_that_is_set_or_else_that_of_the_script(
    nllb: Pair, colours: Pair, text: str, language: str | None, code: str
) -> None:
    words = nllb.words(text, language)
    assert (words[0], words[1:]) == (code, nllb.words(text)[1:])
    assert colours.ids(text, language) == colours.ids(text), "a model without languages got one"
