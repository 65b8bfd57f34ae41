# SPDX-License-Identifier: AGPL-3.0-only
"""Text is detected and read as RapidOCR does it with the same weights, in the order in which people read it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from demo.pictures import CJK_FONT, group_photo, text_page
from mt_photos_ml.photo import Photo
from mt_photos_ml.runtime import Session
from mt_photos_ml.runtime.ort import OrtRuntime
from mt_photos_ml.tasks import ocr
from mt_photos_ml.tasks.ocr import Line
from mt_photos_ml.tasks.padding import CANVASES_PX, LINE_WIDTHS_PX, LINES
from photos import encoded
from recorded import Recorded

REFERENCE = """
import json, sys
from rapidocr import RapidOCR
engine = RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})
for picture in sys.argv[1:]:
    read = engine(picture)
    print(json.dumps({"texts": read.txts, "boxes": read.boxes.tolist(), "scores": read.scores}))
"""
_PACKAGE = importlib.util.find_spec("rapidocr")
NEWEST = Path(_PACKAGE.origin).parents[1] if _PACKAGE and _PACKAGE.origin else None
OLDER = Path(sys.prefix) / "rapidocr-3.4"
WHEELS = {
    "newest": (NEWEST, "PP-OCRv6_{}_small.onnx"),
    "3.4": (OLDER if OLDER.is_dir() else None, "ch_PP-OCRv4_{}_infer.onnx"),
}

LATIN = ["Departures from platform 4", "Hamburg 10:42 on time", "Paris 11:05 delayed", "Total: 1,284.50 EUR"]
CHINESE = ["欢迎使用照片管理", "北京市朝阳区建国路八十八号", "今日天气晴朗适合拍照", "合计金额一百二十八元"]
PAGES: dict[str, tuple[Sequence[str], tuple[int, int], Path | None]] = {
    "Latin": (LATIN, (900, 700), None),
    "Latin, small": (LATIN, (520, 400), None),
    "Chinese, portrait": (CHINESE, (736, 1000), CJK_FONT),
    "Chinese, large": (CHINESE, (2000, 1500), CJK_FONT),
}


@dataclass(frozen=True)
class Reader:
    """The two networks of one wheel, run by our code."""

    detector: ocr.Detector
    recogniser: ocr.Recogniser

    def read(self, image: Image.Image, min_score: float = 0.5) -> list[Line]:
        return ocr.read(_photo(image), self.detector, self.recogniser, min_score)

    def texts(self, image: Image.Image) -> list[str]:
        return [line.text for line in self.read(image)]


class Reading(NamedTuple):
    """What RapidOCR reads: texts and scores, and boxes (4, 2) in pixels."""

    texts: list[str]
    boxes: list[list[list[float]]]
    scores: list[float]


def _fixed(output: NDArray[np.float32]) -> Session:
    """A session that always returns this output."""
    pixels = SimpleNamespace(name="x", shape=(None, 3, None, None))
    return cast(Session, SimpleNamespace(inputs=[pixels], few_shapes=False, run=lambda feed: [output]))


def _photo(image: Image.Image) -> Photo:
    return Photo.open(encoded(image, "PNG", compress_level=1))


def _reader(wheel: str) -> Reader:
    folder, pattern = WHEELS[wheel]
    if folder is None:
        pytest.skip(f"no RapidOCR ({wheel}) here")
    runtime, models = OrtRuntime(), folder / "rapidocr" / "models"
    detector = ocr.Detector.load(runtime.open(models / pattern.format("det")), models)
    return Reader(detector, ocr.Recogniser.load(runtime.open(models / pattern.format("rec")), models))


@pytest.fixture(scope="module")
def reader() -> Reader:
    return _reader("newest")


@pytest.fixture(scope="module", params=list(WHEELS))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, dict[str, Reading]]:
    """Our reader with a wheel's weights, and what that wheel's own code reads on all pages, in one process."""
    ours = _reader(request.param)
    folder, _ = WHEELS[request.param]
    paths = []
    for name, (lines, size, font) in PAGES.items():
        if lines is LATIN or CJK_FONT:
            paths.append(tmp_path_factory.mktemp("pages") / f"{name}.png")
            page = text_page(lines, size, font)[0]
            if min(size) > 736:  # the size at which we detect text, as the base image; RapidOCR would not scale it
                page = page.resize((round(size[0] * 736 / min(size)), round(size[1] * 736 / min(size))))
            page.save(paths[-1], compress_level=1)
    out = subprocess.run(
        [sys.executable, "-c", REFERENCE, *paths],
        env={**os.environ, "PYTHONPATH": str(folder)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return ours, {path.stem: Reading(**json.loads(line)) for path, line in zip(paths, out.splitlines(), strict=True)}


@pytest.fixture
def blank() -> Image.Image:
    return Image.new("RGB", (1000, 700), (250, 249, 245))


def _write(page: Image.Image, at: tuple[float, float], text: str, size: float = 44) -> None:
    ImageDraw.Draw(page).text(at, text, (15, 15, 15), ImageFont.load_default(size))


def _upright(quad: Sequence[Sequence[float]]) -> list[float]:
    corners = np.array(quad)
    return [*corners.min(axis=0), *np.ptp(corners, axis=0)]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_read_as_rapidocr_reads_it(both: tuple[Reader, dict[str, Reading]], page: str) -> None:
    ours, theirs = both
    if page not in theirs:
        pytest.skip("no CJK font in the usual places: apt-get install fonts-noto-cjk")
    lines, size, font = PAGES[page]
    found, expected = ours.read(text_page(lines, size, font)[0]), theirs[page]
    texts = [line.text.replace(" ", "") for line in found]  # PP-OCRv4 is unsure of spaces in small print
    assert texts == [line.replace(" ", "") for line in expected.texts]
    assert texts == [line.replace(" ", "") for line in lines]
    np.testing.assert_allclose([line.score for line in found], expected.scores, atol=0.05)
    scale = max(min(size) / 736, 1)
    boxes = [_upright(box) for box in expected.boxes]
    np.testing.assert_allclose(np.array([line.box for line in found]) / scale, boxes, atol=4)


def test_boxes_from_a_map_of_probability_are_the_same_as_rapidocrs() -> None:
    process = pytest.importorskip("rapidocr.ch_ppocr_det.utils").DBPostProcess(0.3, 0.5, 1000, 1.6, use_dilation=True)
    rng = np.random.default_rng(5)
    page = Image.new("L", (960, 736))  # a size that the detector gets unscaled
    for cell in range(54):
        word = Image.new("L", (int(rng.integers(6, 80)), int(rng.integers(3, 30))), int(rng.integers(150, 255)))
        word = word.rotate(float(rng.uniform(-30, 30)), expand=True)
        page.paste(word, (cell % 9 * 105 - 5, cell // 9 * 122 + int(rng.integers(0, 20))), word)
    probability = (np.asarray(page, np.float32) / np.float32(255))[None, None]
    theirs, _ = process(probability, page.size[::-1])
    ours, _ = ocr.detect(_photo(page), ocr.Detector(_fixed(probability)))
    assert len(theirs) >= 20
    off = np.abs(ours[:, None] - theirs).max(axis=(2, 3))
    assert off.min(axis=0).max() <= 3
    sides = np.linalg.norm(ours[:, [1, 3]] - ours[:, :1], axis=2).min(axis=1)
    assert off.min(axis=1)[sides > 6].max() <= 3


def test_repeated_characters_are_merged_unless_a_blank_separates_them() -> None:
    steps = [0, 1, 1, 0, 1, 2, 2, 0, 0, 3, 0]
    output = np.full((2, len(steps), 4), 0.1, np.float32)
    output[0, range(len(steps)), steps] = [0.9, 0.6, 0.5, 0.9, 0.7, 0.8, 0.4, 0.9, 0.9, 0.5, 0.9]
    output[1, :, 0] = 1
    crops = [np.zeros((48, 320, 3), np.uint8)] * 2
    (text, score), blank = ocr.recognise(crops, ocr.Recogniser(_fixed(output), ("", "a", "b", " ")))
    assert (text, blank) == ("aab ", ("", 0.0))
    assert score == pytest.approx((0.6 + 0.7 + 0.8 + 0.5) / 4)


@pytest.mark.parametrize("size", [(900, 700), (1200, 1200), (600, 2600), (4000, 700)])
def test_a_page_is_read_the_same_if_it_is_padded_for_a_device(reader: Reader, size: tuple[int, int]) -> None:
    page, plain = text_page([*LATIN, *LATIN[::-1]], size, margin=0.03)[0], reader
    sessions = [Recorded(each.session, few_shapes=True) for each in (plain.detector, plain.recogniser)]
    padded = Reader(ocr.Detector(sessions[0]), ocr.Recogniser(sessions[1], plain.recogniser.characters))
    expected, found = plain.read(page), padded.read(page)
    assert [line.text for line in found] == [line.text for line in expected]
    assert len(found) == 8
    px = max(min(size) / 736, 1)  # photo pixels for one pixel of the detector's input
    apart = np.abs(np.array([line.box for line in found]) - [line.box for line in expected]) / px
    assert np.median(apart) < 2
    assert apart.max() < 8
    assert {feed["x"].shape[1:] for feed in sessions[1].feeds} <= {(3, 48, width) for width in LINE_WIDTHS_PX}
    assert {len(feed["x"]) for feed in sessions[1].feeds} == {LINES}
    if size != (4000, 700):  # it fits no canvas
        assert sessions[0].feeds[0]["x"].shape[:1:-1] in CANVASES_PX


def test_one_line_upside_down_is_read_among_upright_ones(reader: Reader, blank: Image.Image) -> None:
    lines = ["Departures from platform 4", "Keep this side up please", "Thank you for travelling"]
    _write(blank, (260, 330), lines[1])
    page = blank.rotate(180)
    for y, text in ((60, lines[0]), (560, lines[2])):
        _write(page, (60, y), text)
    assert reader.texts(page) == lines


def test_rows_are_read_from_top_to_bottom_and_each_from_left_to_right(reader: Reader, blank: Image.Image) -> None:
    words = [["Monday", "Tuesday"], ["Wednesday", "Thursday"], ["Friday", "Saturday"]]
    for row, (left, right) in enumerate(words):
        _write(blank, (80, 100 + 180 * row), left, 56)
        _write(blank, (620, 108 + 180 * row), right, 56)  # a little lower, as in a photo that is not quite level
    assert reader.texts(blank) == [word for row in words for word in row]


def test_a_page_of_two_columns_is_read_column_by_column(reader: Reader, blank: Image.Image) -> None:
    columns = [[f"{side} column, line number {i} of it" for i in range(1, 7)] for side in ("Left", "Right")]
    for x, column in zip((60, 540), columns, strict=True):
        for i, text in enumerate(column):
            _write(blank, (x, 100 + 40 * i), text, 27)
    assert reader.texts(blank) == [text for column in columns for text in column]


def test_lines_below_the_minimum_score_are_dropped(reader: Reader, blank: Image.Image) -> None:
    _write(blank, (60, 60), "Departures from platform 4")
    smear = np.random.default_rng(2).integers(0, 255, (14, 130), np.uint8)
    blank.paste(Image.fromarray(smear).resize((500, 60)), (60, 400))
    every = {line.text: line.score for line in reader.read(blank, min_score=0.0)}
    least = min(every.values()) + 1e-4
    kept = [line.text for line in reader.read(blank, min_score=least)]
    assert kept == [text for text, score in every.items() if score > least] != list(every)


def test_a_tiny_line_and_a_banner_are_read_completely(reader: Reader) -> None:
    banner = "Platform 4 Hamburg 10:42 Paris 11:05 Total 1,284.50 EUR Thank you for travelling"
    for size, at, height, text in (((110, 32), (8, 4), 20, "Hamburg"), ((3200, 100), (40, 25), 44, banner)):
        page = Image.new("RGB", size, "white")
        _write(page, at, text, height)
        assert "".join(reader.texts(page)).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("few_shapes", [False, True])
def test_a_line_of_hundreds_of_characters_is_read_completely(reader: Reader, few_shapes: bool) -> None:
    text = " ".join(f"{train} at {7 * i}:{10 + i}" for i, train in enumerate(("Hamburg", "Paris", "Rome", "Oslo") * 8))
    page = Image.new("RGB", (9000, 90), "white")
    _write(page, (40, 30), text, 24)
    recorded = Recorded(reader.recogniser.session, few_shapes)
    (line,) = ocr.read(_photo(page), reader.detector, ocr.Recogniser(recorded, reader.recogniser.characters))
    assert line.text == text
    assert line.score > 0.9
    ink = ImageDraw.Draw(page).textbbox((40, 30), text, ImageFont.load_default(24))
    x, _, width, _ = line.box
    np.testing.assert_allclose((x, x + width), (ink[0], ink[2]), atol=20)
    assert max(feed["x"].shape[3] for feed in recorded.feeds) == LINE_WIDTHS_PX[-1]


@pytest.mark.parametrize(
    ("character", "size", "height"),
    [
        ("7", (40, 60), 30),
        ("3", (900, 700), 30),
        ("7", (900, 700), 400),
        ("B", (900, 700), 400),
        ("A", (2000, 1500), 60),
    ],
)
def test_a_lone_character_is_read(reader: Reader, character: str, size: tuple[int, int], height: float) -> None:
    page, font = Image.new("RGB", size, "white"), ImageFont.load_default(height)
    ImageDraw.Draw(page).text((size[0] / 2, size[1] / 2), character, (15, 15, 15), font, anchor="mm")
    assert reader.texts(page) == [character]


def test_nothing_is_read_in_photos_without_text(reader: Reader) -> None:
    noise = Image.fromarray(np.random.default_rng(4).integers(0, 255, (600, 800, 3), np.uint8))
    gradient = Image.radial_gradient("L").resize((900, 700)).convert("RGB")
    for picture in (noise, gradient, group_photo((2000, 700), range(4), seed=1)[0]):
        photo = Photo.open(encoded(picture, "JPEG", quality=92))
        assert ocr.read(photo, reader.detector, reader.recogniser) == []


def test_every_line_of_a_long_screenshot_is_read(reader: Reader) -> None:
    page = Image.new("RGB", (1080, 8000), "white")
    lines = [f"Message number {1000 + 37 * i} of today" for i in range(40)]
    for i, line in enumerate(lines):
        _write(page, (60 + 200 * (i % 2), 60 + 198 * i), line, 44)
    assert reader.texts(page) == lines
