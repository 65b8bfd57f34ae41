# SPDX-License-Identifier: AGPL-3.0-only
"""Faces are detected, aligned and embedded as insightface does it, on the same sessions."""

import importlib.util
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from demo.models import build_faces
from demo.pictures import DrawnFace, colour_photo, group_photo
from mt_photos_ml.photo import Photo
from mt_photos_ml.runtime.ort import OrtSession
from mt_photos_ml.tasks import faces
from photos import turned
from recorded import Recorded

_PACKAGE = importlib.util.find_spec("insightface")

pytestmark = [
    pytest.mark.skipif(_PACKAGE is None, reason="insightface, the reference, is not installed"),
    pytest.mark.filterwarnings("ignore:.*estimate.*:FutureWarning"),  # scikit-image warns of a call in insightface
]


def given(recorded: Recorded) -> list[NDArray[np.float32]]:
    """The batches that a session got."""
    return [pixels for feed in recorded.feeds for pixels in feed.values()]


def crops(recorded: Recorded) -> NDArray[np.uint8]:
    """The input of a recogniser, as (N, 112, 112, 3) RGB."""
    pixels = np.concatenate(given(recorded)).transpose(0, 2, 3, 1) * 127.5 + 127.5
    return pixels.round().astype(np.uint8)


@dataclass(frozen=True)
class Both:
    """Our detector and insightface's, on one session."""

    ours: faces.Detector
    theirs: Any

    @classmethod
    def of(cls, session: Any) -> "Both":
        """session: onnxruntime's."""
        from insightface.model_zoo.retinaface import RetinaFace

        theirs = RetinaFace(session=session)
        theirs.prepare(ctx_id=0, det_thresh=0.5, input_size=(640, 640))
        return cls(faces.Detector(OrtSession(session)), theirs)

    def agree(
        self, data: bytes, *, filtered: bool = False, pixels: float = 2.0, least: float = 0.5, unsure: int = 0
    ) -> int:
        """Asserts that both find the same faces in a file. Returns how many.

        filtered: insightface gets the photo scaled to its input's size by an antialiasing filter, because its own
        resize samples only four pixels and differs if the photo has fine detail.
        pixels: how far they may be apart; scores may differ by a thousandth of it. least: the minimum score.
        unsure: how many boxes may differ, because boxes of equal score have no order.
        """
        rgb, scale = _upright(data), 1.0
        if filtered:
            ratio = 640 / max(rgb.size)
            small = rgb.resize((int(rgb.width * ratio), int(rgb.height * ratio)), Image.Resampling.BILINEAR)
            rgb, scale = small, rgb.height / small.height
        self.theirs.det_thresh = least
        found, points = self.theirs.detect(_bgr(rgb))
        theirs = np.hstack([scale * found[:, :4], scale * points.reshape(-1, 10), 1000 * found[:, 4:]])
        boxes, scores, points = faces.detect(Photo.open(data), self.ours, least)
        ours = np.hstack([boxes, points.reshape(-1, 10), 1000 * scores[:, None]])
        off = np.abs(ours[:, None] - theirs).max(axis=2).min(axis=1)
        np.testing.assert_array_less(np.sort(off)[: -unsure or None], pixels)
        assert abs(len(ours) - len(theirs)) <= unsure
        return len(boxes)


def _file(image: Image.Image, kind: str = "JPEG", orientation: int = 1) -> bytes:
    return turned(image, orientation, kind, quality=92, compress_level=1)


def _upright(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")


def _bgr(rgb: Image.Image) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(rgb)[:, :, ::-1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    build_faces(folder)
    return folder


@pytest.fixture(scope="module")
def drawn_faces(model: Path) -> Both:
    return Both.of(onnxruntime.InferenceSession(model / "detection" / "model.onnx"))


@pytest.fixture(scope="module")
def anything() -> Both:
    """A detector that reports thousands of overlapping faces in any photo."""
    rng, cells = np.random.default_rng(7), [2 * (640 // stride) ** 2 for stride in (8, 16, 32)]
    scores = [1 / (1 + np.exp(3 - rng.normal(0, 1.5, (count, 1)))) for count in cells]
    boxes = [rng.uniform(3, 6, (count, 4)) for count in cells]
    points = [rng.normal(0, 2, (count, 10)) for count in cells]
    answer = [output.astype(np.float32) for output in (*scores, *boxes, *points)]
    session: Any = SimpleNamespace(run=lambda names, feed: answer)
    session.get_inputs = lambda: [SimpleNamespace(name="input.1", shape=[1, 3, "height", "width"])]
    session.get_outputs = lambda: [SimpleNamespace(name=str(i), shape=array.shape) for i, array in enumerate(answer)]
    session.get_modelmeta = lambda: SimpleNamespace(custom_metadata_map={})
    return Both.of(session)


@pytest.fixture
def recorded(model: Path) -> Recorded:
    return Recorded(OrtSession(onnxruntime.InferenceSession(model / "recognition" / "model.onnx")))


@pytest.fixture
def recogniser(recorded: Recorded, model: Path) -> faces.Recogniser:
    return faces.Recogniser.load(recorded, model)


@pytest.fixture(scope="module")
def family() -> tuple[Image.Image, list[DrawnFace]]:
    return group_photo((1440, 1080), range(6), seed=4)


@pytest.mark.parametrize(
    ("size", "filtered"),
    [((640, 480), False), ((480, 640), False), ((1600, 800), False), ((4000, 3000), True), ((1999, 1333), True)],
)
def test_faces_are_found_where_insightface_finds_them(drawn_faces: Both, size: tuple[int, int], filtered: bool) -> None:
    """Large photos are decoded at a fraction; the side of 1333 scales to no whole number of the input's pixels."""
    assert drawn_faces.agree(_file(group_photo(size, range(4), seed=1)[0]), filtered=filtered) == 4


def test_faces_in_a_turned_photo_are_where_people_see_them(
    drawn_faces: Both, family: tuple[Image.Image, list[DrawnFace]]
) -> None:
    assert drawn_faces.agree(_file(family[0], orientation=6)) == 6


@pytest.mark.parametrize("size", [(640, 427), (300, 640), (320, 240), (1280, 960)])
def test_overlapping_boxes_are_dropped_as_insightface_does(anything: Both, size: tuple[int, int]) -> None:
    """Compares the 200 boxes of the highest scores, after those that they overlap are dropped."""
    data = _file(colour_photo("green", size), "PNG")
    scores = faces.detect(Photo.open(data), anything.ours, 0.0)[1]
    anything.agree(data, filtered=True, pixels=0.1, least=float(scores[200]), unsure=3)


def test_faces_below_the_minimum_score_are_dropped_and_the_others_sorted_by_score(anything: Both) -> None:
    photo = Photo.open(_file(group_photo((640, 480), range(3))[0]))
    every = faces.detect(photo, anything.ours, 0.0)[1]
    least = float(np.median(every))
    assert 0 < least < every.max()
    assert list(faces.detect(photo, anything.ours, least)[1]) == sorted(every[every >= least], reverse=True)


def test_the_alignment_is_the_one_that_insightface_estimates() -> None:
    from insightface.utils.face_align import arcface_dst, estimate_norm

    rng = np.random.default_rng(3)
    for _ in range(200):
        angle, scale = rng.uniform(-np.pi, np.pi), rng.uniform(0.2, 30)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = arcface_dst @ turn.T + rng.uniform(0, 5000, 2) + rng.normal(0, 8 * scale, (5, 2))
        ours = faces.estimate_similarity(points, arcface_dst.astype(np.float64))
        np.testing.assert_allclose(ours, estimate_norm(points), rtol=1e-5, atol=1e-4)
    assert np.isfinite(faces.estimate_similarity(np.full((5, 2), 7.0), np.arange(10.0).reshape(5, 2))).all()


@pytest.mark.parametrize(("size", "kind"), [((640, 480), "PNG"), ((1365, 2048), "JPEG"), ((4000, 3000), "JPEG")])
def test_crops_and_vectors_are_the_same_as_insightfaces(
    size: tuple[int, int], kind: str, drawn_faces: Both, recogniser: faces.Recogniser, recorded: Recorded, model: Path
) -> None:
    from insightface.model_zoo.arcface_onnx import ArcFaceONNX
    from insightface.utils.face_align import norm_crop

    arcface = ArcFaceONNX(str(model / "recognition" / "model.onnx"))
    data = _file(group_photo(size, range(4), seed=1)[0], kind)
    whole = _bgr(_upright(data))
    drawn_faces.theirs.det_thresh = 0.65
    boxes, points = drawn_faces.theirs.detect(whole)
    found = faces.find(Photo.open(data), drawn_faces.ours, recogniser)
    assert len(found) == len(boxes) == 4
    for face, crop in zip(found, crops(recorded), strict=True):
        same = np.abs(boxes[:, :4] - face.box).sum(axis=1).argmin()
        vector = arcface.get_feat(norm_crop(whole, points[same]))[0]
        assert face.embedding @ vector / np.linalg.norm(vector) >= 0.99
        if size == (640, 480):  # both decode it at full size
            theirs = norm_crop(whole, face.points)
            assert np.abs(crop[:, :, ::-1].astype(int) - theirs).mean() < 0.5
            vector = arcface.get_feat(theirs)[0]
            assert face.embedding @ vector / np.linalg.norm(vector) >= 0.9999


def test_a_recogniser_of_one_face_at_a_time_gives_the_same_vectors(
    drawn_faces: Both, recogniser: faces.Recogniser, family: tuple[Image.Image, list[DrawnFace]], tmp_path: Path
) -> None:
    build_faces(tmp_path, batch=1)
    single = Recorded(OrtSession(onnxruntime.InferenceSession(tmp_path / "recognition" / "model.onnx")))
    together, alone = (
        np.stack([face.embedding for face in faces.find(Photo.open(_file(family[0])), drawn_faces.ours, which)])
        for which in (recogniser, faces.Recogniser.load(single, tmp_path))
    )
    assert (len(single.feeds), together.shape, together.dtype.name) == (6, (6, 512), "float32")
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_many_faces_are_embedded_in_batches_and_keep_their_order(
    drawn_faces: Both, recogniser: faces.Recogniser, recorded: Recorded
) -> None:
    crowd = _file(group_photo((2000, 2000), [*range(30), *range(6)])[0])
    found = faces.find(Photo.open(crowd), drawn_faces.ours, recogniser)
    assert [len(feed) for feed in given(recorded)] == [32, 4]
    alone = faces.embed(crops(recorded)[-1:], recogniser)
    np.testing.assert_allclose(found[-1].embedding, alone[0], atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 8, 11])
def test_batches_that_are_padded_for_a_device_give_the_same_vectors(
    drawn_faces: Both, recogniser: faces.Recogniser, recorded: Recorded, count: int
) -> None:
    photo = _file(group_photo((1600, 1200), range(count))[0])
    expected = faces.find(Photo.open(photo), drawn_faces.ours, recogniser)
    padded = Recorded(recorded.session, few_shapes=True)
    found = faces.find(Photo.open(photo), drawn_faces.ours, faces.Recogniser(padded, None))
    assert len(found) == count
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.embedding, theirs.embedding, atol=1e-4)
    assert {len(feed) for feed in given(padded)} <= {1, 8}


@pytest.mark.parametrize(
    ("size", "count", "scale"), [((4000, 3000), 1, 1 / 4), ((4000, 3000), 12, 1 / 2), ((2000, 1500), 12, 1.0)]
)
def test_the_photo_is_decoded_as_large_as_its_smallest_face_needs(
    size: tuple[int, int], count: int, scale: float, drawn_faces: Both, recogniser: faces.Recogniser
) -> None:
    photo = Photo.open(_file(group_photo(size, range(count), seed=1)[0]))
    assert len(faces.find(photo, drawn_faces.ours, recogniser)) == count
    assert photo.pixels(0).scale == pytest.approx(scale)
