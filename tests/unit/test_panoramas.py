# SPDX-License-Identifier: AGPL-3.0-only
"""Faces in a panorama are found where they were drawn, and each has its own vector."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image, ImageDraw

from demo.models import build_faces
from demo.pictures import DrawnFace, Point, draw_face
from mt_photos_ml.photo import Photo
from mt_photos_ml.runtime import Session, Tensors
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.tasks import faces
from photos import jpeg
from recorded import Recorded

LONG = (9900, 1200)


class Finder:
    """The two networks. detector: records its input."""

    def __init__(self, folder: Path) -> None:
        runtime = OrtRuntime(1)
        self.detector = Recorded(runtime.open(folder / "detection" / "model.onnx"))
        self.recogniser = runtime.open(folder / "recognition" / "model.onnx")

    def find(self, image: Image.Image) -> list[faces.Face]:
        """The faces, from left to right, then from top to bottom."""
        self.detector.feeds.clear()
        networks = faces.Detector(self.detector), faces.Recogniser(self.recogniser, None)
        return sorted(faces.find(Photo.open(jpeg(image)), *networks), key=lambda face: tuple(face.box))


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Finder:
    folder = tmp_path_factory.mktemp("faces")
    build_faces(folder)
    return Finder(folder)


def _meadow(size: tuple[int, int], people: Sequence[tuple[Point, float]]) -> tuple[Image.Image, list[DrawnFace]]:
    """A photo of `size` with person 0, 1, … at these centres with these radii, in pixels."""
    photo = Image.new("RGB", size, (120, 160, 120))
    return photo, [draw_face(photo, centre, radius, i) for i, (centre, radius) in enumerate(people)]


def _assert_drawn(found: list[faces.Face], drawn: list[DrawnFace], finder: Finder, pixels: float) -> None:
    """Asserts that each is found once, within so many pixels, with the vector of that person photographed alone."""
    assert len(found) == len(drawn)
    for ours, face in zip(found, drawn, strict=True):
        np.testing.assert_allclose(ours.box, face.box, atol=pixels)
        np.testing.assert_allclose(ours.points, face.points, atol=pixels)
        portrait = Image.new("RGB", (640, 480), (120, 160, 120))
        draw_face(portrait, (320, 240), 100, face.identity)
        (alone,) = finder.find(portrait)
        assert ours.embedding @ alone.embedding > 0.97


def test_faces_at_both_ends_of_a_panorama_have_their_own_boxes_and_vectors(finder: Finder) -> None:
    photo, drawn = _meadow(LONG, [((500, 600), 260), ((4800, 500), 250), ((9400, 600), 300)])
    _assert_drawn(finder.find(photo), drawn, finder, 6)


@pytest.mark.parametrize("size", [LONG, LONG[::-1]])
def test_small_faces_in_a_panorama_are_found(finder: Finder, size: tuple[int, int]) -> None:
    people = [((300, 600), 40.0), ((4800, 500), 30.0), ((9600, 700), 60.0)]
    people = [((x, y) if size == LONG else (y, x), radius) for (x, y), radius in people]
    photo, drawn = _meadow(size, people)
    _assert_drawn(finder.find(photo), sorted(drawn, key=lambda face: face.box), finder, 4)


@pytest.mark.parametrize("radius", [40, 160, 330])
def test_a_face_anywhere_in_a_panorama_is_found_once_and_whole(finder: Finder, radius: float) -> None:
    for x in range(700, 1600, 180):
        photo, drawn = _meadow((2700, 900), [((x, 450), radius)])
        (found,) = finder.find(photo)
        np.testing.assert_allclose(found.box, drawn[0].box, atol=6)


def _see_white(feed: Tensors) -> list[np.ndarray]:
    """The output of a detector that takes white for one face, and scores it higher if less of it is seen."""
    (pixels,) = feed.values()
    rows, columns = np.nonzero(pixels[0].min(axis=0) > 0.5)
    outputs = [np.zeros((2 * (640 // stride) ** 2, size), np.float32) for size in (1, 4, 10) for stride in (8, 16, 32)]
    if len(rows):
        edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        column, row = (edges[:2] + edges[2:]) // 16
        anchor, centre = 2 * (80 * row + column), np.array([column, row]) * 8
        outputs[0][anchor] = 1 - len(rows) / 1e6
        outputs[3][anchor] = np.concatenate([centre - edges[:2], edges[2:] - centre]) / 8
    return outputs


def test_a_face_is_not_taken_from_a_view_of_a_panorama_that_cuts_it() -> None:
    pixels = SimpleNamespace(name="input.1", shape=(1, 3, 640, 640))
    detector = faces.Detector(cast(Session, SimpleNamespace(inputs=[pixels], few_shapes=False, run=_see_white)))
    for left in range(300, 2100, 170):
        photo, box = Image.new("RGB", (2700, 900), "green"), (left, 300, left + 300, 600)
        ImageDraw.Draw(photo).rectangle(box, "white")
        boxes, _, _ = faces.detect(Photo.open(jpeg(photo)), detector, 0.65)
        assert len(boxes) == 1
        np.testing.assert_allclose(boxes[0], box, atol=6)


@pytest.mark.parametrize(
    ("size", "views"), [((1600, 1200), 1), ((1080, 2376), 1), ((2390, 1000), 1), ((600, 150), 1), ((3000, 1000), 6)]
)
def test_only_a_panorama_is_split_into_views(finder: Finder, size: tuple[int, int], views: int) -> None:
    finder.find(_meadow(size, [])[0])
    assert [feed["input.1"].shape for feed in finder.detector.feeds] == [(1, 3, 640, 640)] * views
