# SPDX-License-Identifier: AGPL-3.0-only
"""Chinese-CLIP adopted from the official service gives the same vectors, so that its index stays valid."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import load, save
from PIL import Image

import official
from demo.pictures import colour_photo, group_photo
from mt_photos_ml.models.adopt import CannotAdopt, adopt, find_exports
from mt_photos_ml.photo import Photo
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.tasks import clip
from photos import IN_COLOUR, encoded, turned
from service import run_command, running

CHINESE = ["飞机", "海边", "一只", "小狗", "春节", "的", "照片", "生日", "蛋糕", "年", "，", "。", "！", "㊗", "Ⅷ"]
OTHERS = [
    "2023",
    "café",
    "NAÏVE",
    "Straße",
    "don't",
    "👍",
    "e-mail",
    "x²",
    "ﬁsh",
    "日本語",
    "한국어",
    "привет",
    "sunset",
]
SETTINGS = {
    "CLIP_VISUAL_MODEL_NAME": "cn-clip-vit-b-16",
    "CLIP_TEXTUAL_MODEL_NAME": "cn-clip-vit-b-16",
    "TASKS": "clip",
    "PREPARE_MODELS": "false",
}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official.install(tmp_path_factory.mktemp("official") / "app")


@pytest.fixture(scope="module")
def cache(there: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    (export,) = find_exports(there)
    assert len(list(adopt(export, cache))) == 2
    return cache


def visual(cache: Path, name: str) -> clip.Visual:
    folder = cache / "clip" / name / "visual"
    return clip.Visual.load(OrtRuntime().open(folder / "model.onnx"), folder)


def textual(cache: Path) -> clip.Textual:
    folder = cache / "clip" / "cn-clip-vit-b-16" / "textual"
    return clip.Textual.load(OrtRuntime().open(folder / "model.onnx"), folder)


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def texts() -> Iterator[str]:
    chance = random.Random(20)
    for number in range(1000):
        chosen = chance.choices(CHINESE + OTHERS, k=chance.randrange(3, 60 if number % 10 == 0 else 12))
        yield chance.choice(["", " "]).join(chosen)
    yield from ("", " ", "\t\n", "a" * 300, "你" * 300, "[CLS] [MASK]", "\u200b\ufeff", "ＡＢＣ１２３", "A\u0301")


def test_a_thousand_texts_get_the_official_services_tokens(cache: Path) -> None:
    reader = textual(cache)
    for text in texts():
        ids = reader.tokenizer.encode(" ".join(text.split())).ids
        assert ids == official.tokens(text), text


@pytest.mark.parametrize("kind", ["jpeg-baseline", "jpeg-progressive", "png", "bmp", "webp-lossless", "webp-lossy"])
def test_a_photo_gets_the_official_services_vector(there: Path, cache: Path, kind: str) -> None:
    model = visual(cache, "cn-clip-vit-b-16")
    for picture in (colour_photo("orange", (301, 420)), group_photo((400, 300), [1, 2])[0]):
        photo = IN_COLOUR[kind](picture)
        vector = clip.encode_photo(Photo.open(photo), model)
        np.testing.assert_allclose(vector, unit(official.see(there, photo)), atol=1e-5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_and_large_photos_get_the_official_services_vector(there: Path, cache: Path, orientation: int) -> None:
    model = visual(cache, "cn-clip-vit-b-16")
    for size in ((400, 301), (3000, 2000)):
        photo = turned(group_photo(size, [1, 2, 3])[0], orientation)
        assert clip.encode_photo(Photo.open(photo), model) @ unit(official.see(there, photo)) > 0.9999


def test_the_rgb_variant_reads_the_channels_in_rgb_order(cache: Path) -> None:
    red, blue = (encoded(Image.new("RGB", (300, 300), colour), "PNG") for colour in ("red", "blue"))
    as_there, in_rgb = visual(cache, "cn-clip-vit-b-16"), visual(cache, "cn-clip-vit-b-16-rgb")
    see = clip.encode_photo
    np.testing.assert_allclose(see(Photo.open(red), as_there), see(Photo.open(blue), in_rgb), atol=1e-6)
    assert see(Photo.open(red), as_there) @ see(Photo.open(red), in_rgb) < 0.99


def test_both_variants_share_their_files_on_the_disk(cache: Path) -> None:
    files = [cache / "clip" / name / "visual/model.onnx" for name in ("cn-clip-vit-b-16", "cn-clip-vit-b-16-rgb")]
    assert files[0].samefile(files[1])


def test_the_service_with_an_adopted_model_gives_the_official_vectors(there: Path, tmp_path: Path) -> None:
    """Runs the command, then the service."""
    settings = {**SETTINGS, "MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path)}
    told = run_command(settings, "models", "adopt", there)
    assert told.returncode == 0, told.stderr
    assert "CLIP_TEXTUAL_MODEL_NAME=cn-clip-vit-b-16" in told.stdout
    photo = encoded(colour_photo("green", (300, 200)), "JPEG")
    with running(tmp_path, settings) as service, service.client() as client:
        seen = client.post("/clip/img", files={"file": photo}).json()["result"]
        read = client.post("/clip/txt", json={"text": "海边的小狗"}).json()["result"]
    assert np.array(seen, float) @ unit(official.see(there, photo)) > 0.99999
    assert np.array(read, float) @ unit(official.read(there, "海边的小狗")) > 0.99999


def test_other_sizes_precisions_and_external_weights_are_adopted(tmp_path: Path) -> None:
    folder = official.install(tmp_path / "app", name="vit-l-14-336", side=336, dim=768, precision="fp16")
    path = folder / "utils" / "vit-l-14-336.img.fp16.onnx"
    save(load(path), path, save_as_external_data=True, location=f"{path.name}.extra_file", size_threshold=2000)
    (export,) = find_exports(folder)
    list(adopt(export, tmp_path))
    for name in ("cn-clip-vit-l-14-336", "cn-clip-vit-l-14-336-rgb"):
        photo = Photo.open(encoded(colour_photo("red", (500, 400)), "PNG"))
        assert clip.encode_photo(photo, visual(tmp_path, name)).shape == (768,)


def test_fp32_is_preferred_to_fp16(tmp_path: Path) -> None:
    for precision in ("fp16", "fp32"):
        official.install(tmp_path, precision=precision)
    assert [export.visual.name for export in find_exports(tmp_path)] == ["vit-b-16.img.fp32.onnx"]


def test_files_that_are_no_such_model_are_refused_with_the_reason(there: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CannotAdopt, match=r"expected files such as vit-b-16\.img\.fp32\.onnx"):
        find_exports(empty)
    folder = official.install(tmp_path / "app")
    text = folder / "utils" / "vit-b-16.txt.fp32.onnx"
    text.write_bytes((folder / "utils" / "vit-b-16.img.fp32.onnx").read_bytes())
    with pytest.raises(CannotAdopt, match="expected a model with the input text"):
        find_exports(folder)
    text.write_bytes(b"half")
    with pytest.raises(CannotAdopt, match=r"vit-b-16\.txt\.fp32\.onnx"):
        find_exports(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(CannotAdopt, match=r"expected vocab\.txt"):
        find_exports(folder)
    told = run_command({"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache")}, "models", "adopt", empty)
    assert (told.returncode, told.stdout) == (1, "")
    assert "expected files such as" in told.stderr


def test_the_start_names_the_command_that_adopts_a_missing_model(tmp_path: Path) -> None:
    told = run_command({**SETTINGS, "MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path)}, "serve")
    assert told.returncode == 2
    assert "models adopt" in told.stderr
