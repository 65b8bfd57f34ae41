# SPDX-License-Identifier: AGPL-3.0-only
"""Faces are found, set upright and embedded as insightface does it, on the same sessions."""

import importlib.util
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from demo.graph import Graph
from demo.models import build_faces
from demo.pictures import DrawnFace, colour_photo, group_photo
from mt_photos_ml.photo import Photo
from mt_photos_ml.runtime.ort import OrtSession
from mt_photos_ml.tasks import faces
from photos import turned
from recorded import Recorded

_PACKAGE = importlib.util.find_spec("insightface")
_FOLDER = Path(_PACKAGE.origin).parent / "data" / "images" if _PACKAGE and _PACKAGE.origin else None
PHOTOGRAPHS = sorted(_FOLDER.glob("*.[jp][pn]g")) if _FOLDER else []
photographs = pytest.mark.skipif(not PHOTOGRAPHS, reason="insightface brings no photographs here")
each_photograph = pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)

pytestmark = [
    pytest.mark.skipif(_PACKAGE is None, reason="insightface, the reference, is not installed"),
    pytest.mark.filterwarnings("ignore:.*estimate.*:FutureWarning"),  # scikit-image's, about insightface's call
]


def given(recorded: Recorded) -> list[NDArray[np.float32]]:
    """The batches that a session was given."""
    return [pixels for feed in recorded.feeds for pixels in feed.values()]


def crops(recorded: Recorded) -> NDArray[np.uint8]:
    """What a recogniser was given, as (N, 112, 112, 3) RGB."""
    pixels = np.concatenate(given(recorded)).transpose(0, 2, 3, 1) * 127.5 + 127.5
    return pixels.round().astype(np.uint8)


@dataclass(frozen=True)
class Both:
    """One detector's session in our hands and in insightface's."""

    ours: faces.Detector
    theirs: Any

    @classmethod
    def of(cls, model: Path) -> "Both":
        from insightface.model_zoo.retinaface import RetinaFace

        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        theirs = RetinaFace(session=session)
        theirs.prepare(ctx_id=0, det_thresh=0.5, input_size=(640, 640))
        return cls(faces.Detector(OrtSession(session)), theirs)

    def agree(
        self, data: bytes, *, filtered: bool = False, pixels: float = 2.0, least: float = 0.5, unsure: int = 0
    ) -> int:
        """Asserts that both find the same in a file, within so many pixels of it (or 1/1000 of the score); how many.

        unsure: boxes that may differ, two of equal score having no order.
        filtered: insightface is given the photo already brought to its input's size, by a filter as wide as the
        step; its own resize looks at four pixels only and gives something else wherever the photo has fine detail.
        """
        rgb, scale = _upright(data), np.ones(2)
        if filtered:
            ratio = 640 / max(rgb.size)
            small = rgb.resize((int(rgb.width * ratio), int(rgb.height * ratio)), Image.Resampling.BILINEAR)
            rgb, scale = small, np.full(2, rgb.height / small.height)
        self.theirs.det_thresh = least
        found, theirs_points = self.theirs.detect(_bgr(rgb))
        boxes, scores, points = faces.detect(Photo.open(data), self.ours, least)
        ours = np.hstack([boxes, points.reshape(-1, 10), 1000 * scores[:, None]])
        theirs = np.hstack([found[:, :4], theirs_points.reshape(-1, 10)]) * np.tile(scale, 7)
        theirs = np.hstack([theirs, 1000 * found[:, 4:]])
        off = np.abs(ours[:, None] - theirs).max(axis=2)
        np.testing.assert_array_less(np.sort(off.min(axis=1))[: -unsure or None], pixels)
        assert abs(len(ours) - len(theirs)) <= unsure
        return len(boxes)

    def agree_on_many(self, data: bytes) -> None:
        """Asserts that both make the same of this photo's surest 200 boxes and of what these overlap."""
        scores = faces.detect(Photo.open(data), self.ours, 0.0)[1]
        self.agree(data, filtered=True, pixels=0.1, least=float(scores[200]), unsure=3)


def _file(image: Image.Image, kind: str = "JPEG", orientation: int = 1) -> bytes:
    return turned(image, orientation, kind, quality=92, compress_level=1)


def _upright(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")


def _bgr(rgb: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(rgb)[:, :, ::-1])


def _centres(boxes: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(boxes, np.float64)
    return (array[:, :2] + array[:, 2:]) / 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    build_faces(folder)
    return folder


@pytest.fixture(scope="module")
def drawn_faces(model: Path) -> Both:
    return Both.of(model / "detection" / "model.onnx")


@pytest.fixture(scope="module")
def anything(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A detector with random weights: it sees hundreds of overlapping faces in whatever it is shown."""
    rng, graph, outputs = np.random.default_rng(7), Graph(), dict[str, list[int | str]]()
    for kind, width in (("score", 1), ("box", 4), ("points", 10)):
        for stride in (8, 16, 32):
            weight = rng.normal(0, 1.5 / stride, (2 * width, 3, stride, stride)).astype(np.float32)
            bias = rng.normal(1, 1, 2 * width)
            place = np.zeros((1, 2 * width, 640 // stride, 640 // stride))
            if kind == "score":
                weight += 1 / stride**2 - weight.mean(axis=(1, 2, 3), keepdims=True)
                bias[:] = -3
                place = rng.normal(0, 0.5, place.shape)  # what is flat would have equal scores, and those no order
            cells = graph("Add", graph("Conv", "input.1", weight, bias, strides=[stride] * 2), place)
            rows = graph("Reshape", graph("Transpose", cells, perm=[0, 2, 3, 1]), [-1, width])
            name = graph({"score": "Sigmoid", "box": "Softplus"}.get(kind, "Identity"), rows, out=f"{kind}_{stride}")
            outputs[name] = [f"anchors_{stride}", width]
    path = tmp_path_factory.mktemp("anything") / "model.onnx"
    graph.save(path, {"input.1": [1, 3, "height", "width"]}, outputs)
    return Both.of(path)


@pytest.fixture
def recorded(model: Path) -> Recorded:
    return Recorded(OrtSession(onnxruntime.InferenceSession(model / "recognition" / "model.onnx")))


@pytest.fixture
def recogniser(recorded: Recorded, model: Path) -> faces.Recogniser:
    return faces.Recogniser.load(recorded, model)


@pytest.fixture(scope="module")
def arcface(model: Path) -> Any:
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX

    return ArcFaceONNX(str(model / "recognition" / "model.onnx"))


@pytest.fixture(scope="module")
def family() -> tuple[Image.Image, list[DrawnFace]]:
    return group_photo((1440, 1080), range(6), seed=4)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (640, 640), (1440, 1080), (1080, 1440), (1600, 800)])
def test_faces_are_found_where_insightface_finds_them(drawn_faces: Both, size: tuple[int, int]) -> None:
    assert drawn_faces.agree(_file(group_photo(size, range(5), seed=2)[0])) == 5


@pytest.mark.parametrize("size", [(4000, 3000), (2000, 3000), (1999, 1333), (2500, 999)])
def test_a_photo_decoded_at_a_fraction_gives_the_faces_of_the_whole(drawn_faces: Both, size: tuple[int, int]) -> None:
    assert drawn_faces.agree(_file(group_photo(size, range(4), seed=1)[0]), filtered=True) == 4


def test_boxes_of_a_photo_of_three_by_two_are_insightfaces(drawn_faces: Both) -> None:
    """Its shorter side is no whole number of the input's pixels; there is nothing finer in it than the input shows."""
    soft = group_photo((750, 500), range(6), seed=1)[0].resize((2400, 1600), Image.Resampling.BICUBIC)
    assert drawn_faces.agree(_file(soft)) == 6


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_faces_are_where_people_see_them_in_a_turned_photo(
    drawn_faces: Both, family: tuple[Image.Image, list[DrawnFace]], orientation: int
) -> None:
    data = _file(family[0], orientation=orientation)
    assert drawn_faces.agree(data) == 6
    boxes, _, _ = faces.detect(Photo.open(data), drawn_faces.ours, 0.65)
    distances = np.linalg.norm(_centres(boxes)[:, None] - _centres([face.box for face in family[1]]), axis=2)
    assert distances.min(axis=0).max() < 3


@pytest.mark.parametrize("size", [(640, 640), (640, 427), (300, 640), (320, 240), (1280, 960)])
def test_overlapping_boxes_are_thinned_out_as_insightface_does(anything: Both, size: tuple[int, int]) -> None:
    anything.agree_on_many(_file(group_photo(size, range(3))[0], "PNG"))


@photographs
@each_photograph
def test_photographs_are_decoded_as_insightface_does(anything: Both, path: Path) -> None:
    anything.agree_on_many(_file(Image.open(path).convert("RGB"), "PNG"))


@pytest.mark.parametrize("threshold", [0.4, 0.9])
def test_only_faces_of_the_least_score_are_kept_the_surest_first(anything: Both, threshold: float) -> None:
    photo = Photo.open(_file(group_photo((640, 480), range(3))[0]))
    every, (_, scores, _) = faces.detect(photo, anything.ours, 0.0)[1], faces.detect(photo, anything.ours, threshold)
    assert list(scores) == sorted(scores, reverse=True)
    assert len(scores) == np.sum(every >= threshold)


def test_the_move_to_the_template_is_the_one_insightface_estimates() -> None:
    from insightface.utils.face_align import arcface_dst, estimate_norm

    rng = np.random.default_rng(3)
    for _ in range(200):
        angle, scale = rng.uniform(-np.pi, np.pi), rng.uniform(0.2, 30)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = arcface_dst @ turn.T + rng.uniform(0, 5000, 2) + rng.normal(0, 8 * scale, (5, 2))
        ours = faces.estimate_similarity(points, arcface_dst.astype(np.float64))
        np.testing.assert_allclose(ours, estimate_norm(points), rtol=1e-5, atol=1e-4)


def test_points_that_all_coincide_are_no_division_by_zero() -> None:
    assert np.isfinite(faces.estimate_similarity(np.full((5, 2), 7.0), np.arange(10.0).reshape(5, 2))).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_crops_and_vectors_of_a_whole_decode_are_insightfaces(
    kind: str, drawn_faces: Both, recogniser: faces.Recogniser, recorded: Recorded, arcface: Any
) -> None:
    from insightface.utils.face_align import norm_crop

    data = _file(group_photo((640, 480), range(6), seed=3)[0], kind)
    found = faces.find(Photo.open(data), drawn_faces.ours, recogniser)
    assert len(found) == 6
    for face, crop in zip(found, crops(recorded), strict=True):
        theirs = norm_crop(_bgr(_upright(data)), face.points)
        assert np.abs(crop[:, :, ::-1].astype(int) - theirs).mean() < 0.5
        vector = arcface.get_feat(theirs)[0]
        assert face.embedding @ vector / np.linalg.norm(vector) >= 0.9999


@pytest.mark.parametrize("size", [(3000, 2250), (1365, 2048)])
def test_vectors_of_a_photo_decoded_at_a_fraction_are_those_of_the_whole(
    size: tuple[int, int], drawn_faces: Both, recogniser: faces.Recogniser, arcface: Any
) -> None:
    from insightface.utils.face_align import norm_crop

    data = _file(group_photo(size, range(3), seed=5)[0])
    photo, whole = Photo.open(data), _bgr(_upright(data))
    found = faces.find(photo, drawn_faces.ours, recogniser)
    assert len(found) == 3
    assert photo.pixels(0).scale < 1
    for face in found:
        vector = arcface.get_feat(norm_crop(whole, face.points))[0]
        assert face.embedding @ vector / np.linalg.norm(vector) >= 0.99


@pytest.mark.parametrize("size", [(1440, 1080), (1800, 1200), (4000, 3000)])
def test_vectors_are_insightfaces_from_the_file_on(
    size: tuple[int, int], drawn_faces: Both, recogniser: faces.Recogniser, arcface: Any
) -> None:
    from insightface.utils.face_align import norm_crop

    data = _file(group_photo(size, range(4), seed=1)[0])
    whole = _bgr(_upright(data))
    drawn_faces.theirs.det_thresh = 0.65
    boxes, points = drawn_faces.theirs.detect(whole)
    for face in faces.find(Photo.open(data), drawn_faces.ours, recogniser):
        same = np.abs(boxes[:, :4] - face.box).sum(axis=1).argmin()
        vector = arcface.get_feat(norm_crop(whole, points[same]))[0]
        assert face.embedding @ vector / np.linalg.norm(vector) >= 0.99


def test_vectors_have_length_one_and_tell_people_apart(
    drawn_faces: Both, recogniser: faces.Recogniser, family: tuple[Image.Image, list[DrawnFace]]
) -> None:
    found = faces.find(Photo.open(_file(family[0])), drawn_faces.ours, recogniser)
    vectors = np.stack([face.embedding for face in found])
    assert vectors.shape == (6, 512)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    likeness = vectors @ vectors.T - np.eye(6)
    assert likeness.max() < 0.5


def test_a_recogniser_of_one_face_at_a_time_gives_the_same_and_its_file_stays_as_it_is(
    drawn_faces: Both, recogniser: faces.Recogniser, family: tuple[Image.Image, list[DrawnFace]], tmp_path: Path
) -> None:
    build_faces(tmp_path, batch=1)
    model = tmp_path / "recognition" / "model.onnx"
    before = model.read_bytes()
    one_by_one = Recorded(OrtSession(onnxruntime.InferenceSession(model)))
    fixed = faces.Recogniser.load(one_by_one, model.parent)
    assert (fixed.batch, recogniser.batch) == (1, None)
    data = _file(family[0])
    some, others = (faces.find(Photo.open(data), drawn_faces.ours, which) for which in (fixed, recogniser))
    assert len(some) == len(one_by_one.feeds) == 6
    for one, other in zip(some, others, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-5)
    assert model.read_bytes() == before


def test_all_faces_of_a_photo_go_through_the_recogniser_at_once(
    drawn_faces: Both, recogniser: faces.Recogniser, recorded: Recorded
) -> None:
    found = faces.find(Photo.open(_file(group_photo((1280, 960), range(12))[0])), drawn_faces.ours, recogniser)
    assert len(found) == 12
    assert [feed.shape for feed in given(recorded)] == [(12, 3, 112, 112)]


def test_a_crowd_goes_in_parts_and_in_order(
    drawn_faces: Both, recogniser: faces.Recogniser, recorded: Recorded
) -> None:
    photo = Photo.open(_file(group_photo((2000, 2000), [*range(30), *range(6)])[0]))
    found = faces.find(photo, drawn_faces.ours, recogniser)
    assert [len(feed) for feed in given(recorded)] == [32, 4]
    alone = faces.embed(crops(recorded)[-1:], recogniser)
    np.testing.assert_allclose(found[-1].embedding, alone[0], atol=1e-3)


def test_no_face_is_an_empty_list_and_no_run_of_the_recogniser(
    drawn_faces: Both, recogniser: faces.Recogniser, recorded: Recorded
) -> None:
    for size in ((800, 600), (1, 1), (3, 2000)):
        assert faces.find(Photo.open(_file(colour_photo("green", size))), drawn_faces.ours, recogniser) == []
    assert recorded.feeds == []


@pytest.mark.parametrize(
    ("size", "count", "scale"), [((4000, 3000), 1, 1 / 4), ((4000, 3000), 12, 1 / 2), ((2000, 1500), 12, 1.0)]
)
def test_the_photo_is_decoded_as_large_as_its_smallest_face_needs(
    size: tuple[int, int], count: int, scale: float, drawn_faces: Both, recogniser: faces.Recogniser
) -> None:
    photo = Photo.open(_file(group_photo(size, range(count), seed=1)[0]))
    assert len(faces.find(photo, drawn_faces.ours, recogniser)) == count
    assert photo.pixels(0).scale == pytest.approx(scale)
