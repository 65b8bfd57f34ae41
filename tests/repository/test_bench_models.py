# SPDX-License-Identifier: AGPL-3.0-only
"""The benchmark's models have the real interfaces and sizes, and its photos are what they are named for."""

from io import BytesIO
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from bench import photos
from bench.models import FREE, NAME, NETWORKS, Sizes, build
from bench.network import Network
from demo.pictures import LANDMARKS

SMALL = Sizes(64, 1, 64, 500, (8, 8, 8, 8, 16, 8, 8), (1, 1, 1, 1), (8, 8, 8, 16), (1, 1, 2, 1))
CLIP, FREE_CLIP, FACES = f"clip/{NAME}", f"clip/{FREE}", f"facial-recognition/{NAME}"
ANCHORS = [
    f"{kind}_{stride} {[f'anchors_{stride}', width]}"
    for kind, width in {"score": 1, "box": 4, "points": 10}.items()
    for stride in (8, 16, 32)
]
NETWORKS_AS_THEY_ARE = [
    (f"{CLIP}/visual", 87.8e6, "image [1, 3, 64, 64]", ["embedding [1, 512]"]),
    (f"{CLIP}/textual", 278.3e6, "text [1, 77]", ["embedding [1, 512]"]),
    (f"{FACES}/detection", 4.23e6, "input.1 [1, 3, '?', '?']", ANCHORS),
    (f"{FACES}/recognition", 43.6e6, "input.1 ['None', 3, 112, 112]", ["embedding ['None', 512]"]),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    build(folder, SMALL)
    return folder


def run(model: Path, values: NDArray[np.generic]) -> list[NDArray[np.float32]]:
    session = ort.InferenceSession(model / "model.onnx")
    return list(session.run(None, {session.get_inputs()[0].name: values}))


class Counting(Network):
    """Keeps only the number of its weights."""

    numbers = 0

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> NDArray[np.float32]:
        self.numbers += int(np.prod(shape))
        return np.zeros(1, np.float32)


@pytest.mark.parametrize(("part", "weights", "given", "returned"), NETWORKS_AS_THEY_ARE)
def test_weights_inputs_and_outputs_are_the_real_architectures(
    cache: Path, tmp_path: Path, part: str, weights: float, given: str, returned: list[str]
) -> None:
    net, session = Counting(), ort.InferenceSession(cache / part / "model.onnx")
    NETWORKS[part](net, Sizes(), tmp_path / "model.onnx")
    assert net.numbers == pytest.approx(weights, rel=0.01)
    assert [f"{node.name} {node.shape}" for node in session.get_inputs()] == [given]
    assert [f"{node.name} {node.shape}" for node in session.get_outputs()] == returned


@pytest.mark.parametrize("part", [f"{CLIP}/visual", f"{FREE_CLIP}/visual", f"{CLIP}/textual"])
def test_vectors_have_length_one_and_depend_on_what_is_given(cache: Path, part: str) -> None:
    pixels = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    ids = np.array([[0, *range(7, 480, 7), *[1] * 77]], np.int32)[:, :77]
    one, two = (pixels, 0 * pixels) if part.endswith("visual") else (ids, ids[:, ::-1].copy())
    vectors = [run(cache / part, values)[0][0] for values in (one, two)]
    assert [float(np.linalg.norm(vector)) for vector in vectors] == pytest.approx([1, 1], abs=1e-5)
    assert vectors[0] @ vectors[1] < 1 - 1e-4


def test_ids_spread_over_the_vocabulary(cache: Path) -> None:
    tokenizer = Tokenizer.from_file(str(cache / CLIP / "textual/tokenizer.json"))
    ids = tokenizer.encode("A photo of a dog, 2021").ids
    assert (ids[0], ids[-1], tokenizer.get_vocab_size()) == (0, 2, SMALL.vocabulary)
    assert len(set(ids)) > 10


def test_the_detector_reports_three_faces_in_any_photo_which_moves_them_a_little(cache: Path) -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(2):
        outputs = run(cache / FACES / "detection", rng.uniform(-1, 1, (1, 3, 480, 640)).astype(np.float32))
        for (score, box, points), reach in zip((outputs[i::3] for i in range(3)), (5, 4, 3), strict=True):
            assert (score > 0.99).sum() == 1
            np.testing.assert_allclose(box[score.argmax()], [reach] * 4, atol=0.2)
            np.testing.assert_allclose(points[score.argmax()], reach * LANDMARKS.ravel(), atol=0.2)
        found.append(outputs)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(*found, strict=True))


def test_finished_models_are_kept_and_others_built_again(tmp_path: Path) -> None:
    build(tmp_path, SMALL)
    model = tmp_path / FREE_CLIP / "visual" / "model.onnx"
    model.write_bytes(b"mine")
    build(tmp_path, SMALL)
    assert model.read_bytes() == b"mine"
    (tmp_path / "recipe.txt").unlink()
    build(tmp_path, SMALL)
    assert model.read_bytes() != b"mine"


@pytest.mark.parametrize("name", [photos.JPEG_1440, photos.PAGE_1440, photos.PNG])
def test_photos_are_the_same_each_time_and_have_a_phones_bytes(name: str) -> None:
    made = photos.photo(name, (1440, 1080))
    image = Image.open(BytesIO(made))
    assert (image.format == "PNG", image.size, image.mode) == (name == photos.PNG, (1440, 1080), "RGB")
    assert photos.photo(name, (1440, 1080)) == made
    assert name == photos.PNG or 250_000 < len(made) < 450_000
