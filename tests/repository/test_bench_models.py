# SPDX-License-Identifier: AGPL-3.0-only
"""The benchmark's models have the real interfaces and sizes, and its photos are what they are named for."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from bench import photos
from bench.models import FREE, NAME, REAL, Sizes, build, build_free
from mt_photos_ml.photo import Photo
from mt_photos_ml.runtime import RuntimeSession
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.tasks import clip, faces

SMALL = Sizes(
    width=32,
    layers=1,
    heads=4,
    image=64,
    vocabulary=500,
    positions=82,
    detector=(8, 8, 8, 8, 16, 8, 8),
    detector_blocks=(1, 1, 1, 1),
    recogniser=(8, 8, 8, 16),
    recogniser_blocks=(1, 1, 2, 1),
)
CLIP, FREE_CLIP, FACES = f"clip/{NAME}", f"clip/{FREE}", f"facial-recognition/{NAME}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build(folder, SMALL)
    build_free(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def photo() -> bytes:
    return photos.photo(photos.JPEG_1440, (720, 540))


def _opened(folder: Path) -> RuntimeSession:
    return OrtRuntime(1).open(folder / "model.onnx")


def _numbers(model: Path) -> int:
    """How many numbers the weights of a model are."""
    weights = onnx.load(model / "model.onnx").graph.initializer
    return sum(int(np.prod(w.dims)) for w in weights if len(w.dims) and w.data_type == onnx.TensorProto.FLOAT)


def _of_layers(sizes: Sizes) -> int:
    return sizes.layers * (12 * sizes.width**2 + 13 * sizes.width)


def _of_visual(sizes: Sizes) -> int:
    tokens = (sizes.image // sizes.patch) ** 2 + 1
    return sizes.width * (3 * sizes.patch**2 + 1 + tokens + 4 + 512) + _of_layers(sizes)


def _of_textual(sizes: Sizes) -> int:
    middle = (sizes.width + 512) // 2
    words = sizes.width * (sizes.vocabulary + sizes.positions + 1 + 2)
    return words + _of_layers(sizes) + sizes.width * middle + middle * 512


def _of_recogniser(sizes: Sizes) -> int:
    inner = sizes.recogniser[0]
    total = 27 * inner + 2 * inner + 4 * sizes.recogniser[-1] + 512 * (49 * sizes.recogniser[-1] + 1)
    for outer, blocks in zip(sizes.recogniser, sizes.recogniser_blocks, strict=True):
        total += inner * outer + outer
        for block in range(blocks):
            first = outer if block else inner
            total += 4 * first + 9 * outer * (first + outer) + 3 * outer
        inner = outer
    return total


@pytest.mark.parametrize(
    ("part", "count", "real"),
    [
        (f"{CLIP}/visual", _of_visual, 87.8e6),
        (f"{CLIP}/textual", _of_textual, 278.3e6),
        (f"{FACES}/recognition", _of_recogniser, 43.6e6),
    ],
)
def test_the_real_sizes_have_the_real_architectures_weights(
    cache: Path, part: str, count: Callable[[Sizes], int], real: float
) -> None:
    assert count(SMALL) == _numbers(cache / part)
    assert count(REAL) == pytest.approx(real, rel=0.002)


def test_the_detector_has_the_weights_of_scrfd_10g(tmp_path: Path) -> None:
    build(tmp_path, replace(SMALL, detector=REAL.detector, detector_blocks=REAL.detector_blocks))
    assert _numbers(tmp_path / FACES / "detection") - 2 * (80**2 + 40**2 + 20**2) == pytest.approx(4.23e6, rel=0.01)


@pytest.mark.parametrize("name", [CLIP, FREE_CLIP])
def test_photos_and_texts_become_vectors_of_length_one(cache: Path, photo: bytes, name: str) -> None:
    seen, read = _opened(cache / name / "visual"), _opened(cache / name / "textual")
    assert [(node.name, node.shape) for node in (*seen.inputs, *read.inputs)] == [
        ("image", [1, 3, 64, 64]),
        ("text", [1, 77]),
    ]
    visual = clip.Visual.load(seen, cache / name / "visual")
    textual = clip.Textual.load(read, cache / name / "textual")
    pixels = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    ids = np.array([[0, *range(7, 480, 7), *[1] * 77]], np.int32)[:, :77]
    for vector in (seen.run({"image": pixels})[0], seen.run({"image": 0 * pixels})[0], read.run({"text": ids})[0]):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert clip.encode_photo(Photo.open(photo), visual).shape == (512,)
    assert clip.encode_text("a dog 狗", textual) @ clip.encode_text("an aeroplane", textual) < 1 - 1e-4


def test_padding_says_nothing_and_every_other_token_something(cache: Path, tmp_path: Path) -> None:
    """Even where padding stands for another word."""
    ids = np.ones((1, 77), np.int32)
    ids[0, :4] = 0, 40, 50, 2
    model = onnx.load(cache / CLIP / "textual" / "model.onnx")
    (table,) = (w for w in model.graph.initializer if list(w.dims) == [SMALL.vocabulary, SMALL.width])
    vectors = [_opened(cache / CLIP / "textual").run({"text": ids})[0]]
    for word in (1, 50):
        words = onnx.numpy_helper.to_array(table).copy()
        words[word] += np.arange(SMALL.width)
        table.CopyFrom(onnx.numpy_helper.from_array(words, table.name))
        onnx.save(model, tmp_path / "model.onnx")
        vectors.append(_opened(tmp_path).run({"text": ids})[0])
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)
    assert np.abs(vectors[2] - vectors[0]).max() > 1e-3


def test_ids_spread_over_the_vocabulary(cache: Path) -> None:
    textual = clip.Textual.load(_opened(cache / CLIP / "textual"), cache / CLIP / "textual")
    encoding = textual.tokenizer.encode("A photo of a dog, 2021")
    assert len(encoding.ids) == 77
    assert encoding.ids[0] == 0
    assert encoding.ids[-1] == textual.tokenizer.token_to_id("<pad>") == 1
    assert len(set(encoding.ids)) > 10
    assert textual.tokenizer.get_vocab_size() == SMALL.vocabulary


def test_the_detector_reports_three_faces_apart_in_any_photo(cache: Path, photo: bytes) -> None:
    detector = faces.Detector(_opened(cache / FACES / "detection"))
    grey = BytesIO()
    Image.new("RGB", (720, 540), "grey").save(grey, "PNG")
    for data in (photo, grey.getvalue()):
        boxes, scores, points = faces.detect(Photo.open(data), detector, 0.5)
        assert len(boxes) == 3
        assert scores.min() > 0.99
        seen = boxes * 640 / 720
        sides = (seen[:, 2:] - seen[:, :2])[np.argsort(seen[:, 0])]
        np.testing.assert_allclose(sides, [[80, 80], [128, 128], [192, 192]], atol=5)
        assert seen.min() > 0
        assert (seen[:, 2:] < [640, 480]).all()
        for five, box in zip(points, boxes, strict=True):
            assert (five > box[:2]).all()
            assert (five < box[2:]).all()


def test_what_the_photo_shows_moves_the_faces_a_little(cache: Path) -> None:
    """So that no optimiser can leave the network out."""
    detector = _opened(cache / FACES / "detection")
    rng = np.random.default_rng(0)
    one, two = (detector.run({"input.1": rng.uniform(-1, 1, (1, 3, 480, 640)).astype(np.float32)}) for _ in range(2))
    assert [output.shape for output in one] == [(n, w) for w in (1, 4, 10) for n in (9600, 2400, 600)]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(one, two, strict=True))


def test_the_recogniser_takes_any_number_of_faces(cache: Path) -> None:
    session = _opened(cache / FACES / "recognition")
    recogniser = faces.Recogniser.load(session, cache / FACES / "recognition")
    assert recogniser.batch is None
    crops = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
    together, alone = faces.embed(crops, recogniser), np.concatenate([faces.embed(c[None], recogniser) for c in crops])
    assert together.shape == (3, 512)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_what_is_there_is_left_alone_and_what_was_interrupted_is_built_again(tmp_path: Path) -> None:
    build_free(tmp_path, SMALL)
    model, marker = tmp_path / FREE_CLIP / "visual" / "model.onnx", tmp_path / FREE_CLIP / "recipe.txt"
    written = model.read_bytes()
    model.write_bytes(b"mine")
    build_free(tmp_path, SMALL)
    assert model.read_bytes() == b"mine"
    marker.unlink()
    build_free(tmp_path, SMALL)
    assert model.read_bytes() == written
    build_free(tmp_path, replace(SMALL, image=32))
    assert model.read_bytes() != written


def test_photos_are_the_same_each_time_and_kept(tmp_path: Path) -> None:
    made = photos.photos(tmp_path, [photos.JPEG_1440, photos.PAGE_1440])
    for name, data in made.items():
        with Image.open(BytesIO(data)) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (1440, 1080), "RGB")
        assert photos.photo(name, (1440, 1080)) == data
    assert len(made[photos.JPEG_1440]) == pytest.approx(400_000, rel=0.2)
    kept = next(tmp_path.glob("*JPEG*"))
    kept.write_bytes(b"mine")
    assert photos.photos(tmp_path, [photos.JPEG_1440]) == {photos.JPEG_1440: b"mine"}


def test_the_png_is_one() -> None:
    with Image.open(BytesIO(photos.photo(photos.PNG, (320, 240)))) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (320, 240), "RGB")


def test_the_page_has_twelve_different_lines() -> None:
    assert len(set(photos.lines())) == 12
