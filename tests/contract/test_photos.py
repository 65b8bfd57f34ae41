# SPDX-License-Identifier: AGPL-3.0-only
"""Photos of every kind of file, turned by EXIF or in their pixels."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from PIL import Image

from contract.api import Api, Box, cosine
from demo.pictures import DrawnFace, colour_photo, group_photo, text_page
from photos import HEIC_CAN_BE_MADE, IN_COLOUR, IN_GREY, jpeg, turned

TRAINS = ["Morning", "Evening", "Northern", "Southern", "Western", "Eastern", "Coastal", "Mountain", "Express", "Slow"]
LINES = [f"{train} train {number}" for number, train in enumerate([*TRAINS, "Night", "Freight"], 101)]
PAGE = (600, 800)
GROUP = (960, 720)
HEIC_NEEDED = pytest.mark.skipif(not HEIC_CAN_BE_MADE, reason="pillow-heif, which makes HEIC, is not installed")
COLOUR_KINDS = [pytest.param(kind, marks=HEIC_NEEDED) if kind == "heic" else kind for kind in IN_COLOUR]
ENCODERS, ALL_KINDS = {**IN_COLOUR, **IN_GREY}, [*COLOUR_KINDS, *IN_GREY]
TURNED = pytest.mark.parametrize(
    ("orientation", "kind"),
    [
        *((orientation, "JPEG") for orientation in range(1, 9)),
        *((6, kind) for kind in ("PNG", "WEBP", "TIFF", "AVIF")),
        pytest.param(6, "HEIF", marks=HEIC_NEEDED),
    ],
)


@cache
def postcard() -> tuple[Image.Image, list[DrawnFace]]:
    """Two people, and a line of text below them."""
    picture = Image.new("RGB", (640, 560))
    people, faces = group_photo((640, 480), [3, 11], seed=1)
    picture.paste(people)
    picture.paste(text_page(["Greetings 2026"], (640, 80))[0], (0, 480))
    return picture, sorted(faces, key=lambda face: face.box)


@cache
def page() -> tuple[Image.Image, list[Box]]:
    """Twelve lines of text, and each line's box of ink (x1, y1, x2, y2)."""
    return text_page(LINES, PAGE)


@cache
def group() -> tuple[Image.Image, list[DrawnFace]]:
    """Three people on a meadow."""
    return group_photo(GROUP, [0, 7, 16])


def skip_if_not_decoded(api: Api, kind: str, photo: bytes) -> None:
    """Skips HEIC and AVIF if the service has no decoder for them, which it must say with a Retry-After."""
    called = {"HEIF": "HEIC"}.get(kind.upper(), kind.upper())
    if called not in ("HEIC", "AVIF"):
        return
    answer = api.post_photo("/clip/img", photo)
    if answer.status_code == 503:
        assert called in answer.json()["msg"]
        assert int(answer.headers["retry-after"]) > 0
        pytest.skip(f"this service has no decoder of {called}")


def assert_drawn(found: Sequence[Box], faces: Sequence[DrawnFace], tolerance: float) -> None:
    """Asserts that the boxes are where the faces were drawn. tolerance: pixels for each edge."""
    edges = [(x, y, x + width, y + height) for x, y, width, height in found]
    drawn = sorted(face.box for face in faces)
    assert np.shape(edges) == np.shape(drawn)
    assert np.abs(np.subtract(edges, drawn)).max() <= tolerance


def assert_page(found: Sequence[tuple[str, Box]], inks: Sequence[Box], page: tuple[int, int]) -> None:
    """Asserts that the lines are read in order, each where its ink is, to 3 % of the page."""
    assert [text.replace(" ", "") for text, _ in found] == [line.replace(" ", "") for line in LINES]
    edges = np.array([(x, y, x + width, y + height) for _, (x, y, width, height) in found])
    assert (np.abs(edges - np.array(inks)) / np.tile(page, 2)).max() < 0.03


@pytest.mark.parametrize("kind", COLOUR_KINDS)
def test_a_photo_of_any_kind_has_the_same_results_as_its_jpeg(api: Api, kind: str) -> None:
    picture, faces = postcard()
    photo = IN_COLOUR[kind](picture)
    skip_if_not_decoded(api, kind, photo)
    assert cosine(api.see(photo), api.see(jpeg(picture))) > 0.99
    assert_drawn([face.box for face in api.faces(photo)], faces, 3)
    assert [text for text, _ in api.read(photo)] == ["Greetings 2026"]


@pytest.mark.parametrize("kind", IN_GREY)
def test_a_grey_photo_of_any_kind_has_the_same_results_as_its_jpeg(api: Api, kind: str) -> None:
    picture, _ = postcard()
    photo = IN_GREY[kind](picture)
    assert cosine(api.see(photo), api.see(jpeg(picture.convert("L").convert("RGB")))) > 0.99
    assert api.faces(photo) == []  # a drawn face has colours
    assert [text for text, _ in api.read(photo)] == ["Greetings 2026"]


@pytest.mark.parametrize(("name", "kind"), [("notes.txt", "text/plain"), ("照片.gif", "image/gif"), ("", "")])
def test_a_wrong_name_or_content_type_makes_no_difference(api: Api, name: str, kind: str) -> None:
    """The other tests send photos of every kind as photo.jpg, image/jpeg."""
    photo = jpeg(colour_photo("purple", (160, 120)))
    answer = api.post_photo("/clip/img", photo, name, kind)
    assert cosine(np.array(answer.json()["result"], float), api.see(photo)) > 0.9999


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_photo_of_any_kind_is_used_or_reported_as_bad(api: Api, kind: str, share: float) -> None:
    photo = ENCODERS[kind](colour_photo("purple", (160, 120)))
    skip_if_not_decoded(api, kind, photo)
    answer = api.post_photo("/clip/img", photo[: int(len(photo) * share)])
    assert answer.status_code == 200
    assert answer.json()["result"] or answer.json()["msg"]


@TURNED
def test_a_page_turned_by_exif_is_read_as_people_see_it(api: Api, orientation: int, kind: str) -> None:
    seen, inks = page()
    photo = turned(seen, orientation, kind)  # the pixels are stored turned, and EXIF turns them back
    skip_if_not_decoded(api, kind, photo)
    assert_page(api.read(photo), inks, PAGE)


@TURNED
def test_faces_in_a_photo_turned_by_exif_are_where_people_see_them(api: Api, orientation: int, kind: str) -> None:
    seen, faces = group()
    photo = turned(seen, orientation, kind)  # the pixels are stored turned, and EXIF turns them back
    skip_if_not_decoded(api, kind, photo)
    assert_drawn([face.box for face in api.faces(photo)], faces, 3 * GROUP[0] / 640)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_page_turned_in_its_pixels_is_read(api: Api, quarters: int) -> None:
    picture, inks = page()
    (width, height), boxes = PAGE, np.array(inks)
    for _ in range(quarters):  # counter-clockwise: what was right is on top
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        boxes = np.stack([boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]], axis=1)
        width, height = height, width
    assert_page(api.read(jpeg(picture)), [tuple(box) for box in boxes.tolist()], (width, height))
