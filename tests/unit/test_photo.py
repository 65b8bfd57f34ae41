# SPDX-License-Identifier: AGPL-3.0-only
"""Photos of every kind become 8-bit RGB as people see them; bad ones are refused with the reason."""

import struct
import sys
from typing import Any

import numpy as np
import PIL
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageFile

from demo.pictures import colour_photo
from mt_photos_ml.photo import Box, Photo
from mt_photos_ml.photo.decoders import DecoderMissing, PhotoError
from photos import chunk, encoded, exif, stored, that_claims

pillow_heif.register_heif_opener()
KINDS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WebP": {"lossless": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "HEIF": {"quality": 95, "chroma": 444},
}
COLOURS = RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 180, 40), (40, 60, 210), (235, 220, 50)


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    return encoded(image, kind, **{**KINDS.get(kind, {}), **options})


def _pixels(data: bytes, scale: float = 1) -> NDArray[np.uint8]:
    return Photo.open(data).pixels(scale).rgb


def _corners(rgb: NDArray[np.uint8]) -> NDArray[np.int_]:
    """One pixel of each of the `quarters`."""
    return rgb[[10, 10, 50, 50], [10, 80, 10, 80]].astype(int)


@pytest.fixture(scope="module")
def quarters() -> Image.Image:
    """Four quarters of different colours, so that every turn and mirroring shows."""
    image = Image.new("RGB", (96, 64))
    for i, colour in enumerate(COLOURS):
        image.paste(colour, (i % 2 * 48, i // 2 * 32, i % 2 * 48 + 48, i // 2 * 32 + 32))
    return image


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The size of each picture that is decoded, in order."""
    sizes: list[tuple[int, int]] = []

    def load(self: ImageFile.ImageFile, *, load: Any = ImageFile.ImageFile.load) -> Any:
        if self.tile:
            sizes.append(self.size)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    return sizes


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_recognised_without_decoding_and_becomes_rgb(
    quarters: Image.Image, kind: str, loads: list[tuple[int, int]]
) -> None:
    photo = Photo.open(_file(quarters, kind))
    assert str(photo).lower() == f"{kind.lower()} 96x64"
    assert photo.decode_ms == 0
    assert loads == [] or kind in ("AVIF", "HEIF")
    rgb = photo.pixels(1).rgb
    assert rgb.shape == (64, 96, 3)
    assert rgb.dtype == np.uint8
    np.testing.assert_allclose(rgb.astype(int), np.asarray(quarters), atol=25)
    np.testing.assert_allclose(_corners(rgb), COLOURS, atol=6)
    assert photo.decode_ms > 0


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("PNG", np.array([0, 257, 0x8080, 0xFFFF], np.uint16), [0, 1, 0x80, 255]),
        ("TIFF", np.array([0, 257, 0x8080, 0xFFFF], np.uint16), [0, 1, 0x80, 255]),
        ("PNG", np.array([0, 100, 255], np.uint16), [0, 0, 0]),  # dark is dark, not stretched
        ("TIFF", np.array([0, 100, 255], np.int32), [0, 100, 255]),
        ("TIFF", np.array([0, 100, 256], np.int32), [0, 0, 0]),
        ("TIFF", np.array([0, 65535, 131070], np.int32), [0, 127, 255]),
        ("TIFF", np.array([-1, 0.5, 1, 2], np.float32), [0, 127, 255, 255]),
        ("TIFF", np.array([0, 1, 3, 255], np.float32), [0, 1, 3, 255]),
        ("TIFF", np.array([0, 0.5, 1, np.inf, np.nan], np.float32), [0, 127, 255, 255, 0]),
        ("PNG", np.array([0, 1], bool), [0, 255]),
        ("GIF", np.array([0, 1], bool), [0, 255]),
    ],
    ids=str,
)
def test_grey_of_any_depth_is_scaled_to_8_bits_by_its_own_white(
    kind: str, values: NDArray[Any], expected: list[int]
) -> None:
    """Checks the last of 300 rows, because rows are scaled 256 at a time."""
    rgb = _pixels(_file(Image.fromarray(np.tile(values, (300, 1))), kind))
    assert rgb[-1].tolist() == [[value] * 3 for value in expected]


def test_a_truncated_jpeg_of_two_pictures_is_read_as_the_first_of_them(quarters: Image.Image) -> None:
    data = _file(quarters, "MPO", save_all=True, append_images=[Image.new("RGB", (20, 20))])
    photo = Photo.open(data[: data.index(b"MPF") + 1500])
    assert (photo.kind, photo.width, photo.height) == ("JPEG", 96, 64)
    np.testing.assert_allclose(photo.pixels(1).rgb[4, 10].astype(int), RED, atol=8)


def test_the_largest_decode_is_kept_and_reused(loads: list[tuple[int, int]]) -> None:
    photo = Photo.open(_file(colour_photo("green", (1600, 1200)), "JPEG"))
    assert [photo.pixels(scale).scale for scale in (0.2, 0.25, 0.3, 0.1, 7.0, 0.1)] == [0.25, 0.25, 0.5, 0.5, 1, 1]
    assert loads == [(400, 300), (800, 600), (1600, 1200)]


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_a_transparent_colour_of_a_palette_becomes_white(kind: str) -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([*RED, *BLUE])
    assert _pixels(_file(palette, kind, transparency=0)).tolist() == [[[255] * 3, list(BLUE)]]


@pytest.mark.parametrize("kind", ["PNG", "WebP", "TIFF"])
def test_transparent_pixels_are_put_on_white(kind: str) -> None:
    rgba = Image.fromarray(np.array([[(*RED, 255), (*RED, 0), (0, 0, 0, 128), (255, 255, 255, 255)]], np.uint8))
    rgb = _pixels(_file(rgba, kind, **({"exact": True} if kind == "WebP" else {})))[0]
    np.testing.assert_allclose(rgb.astype(int), [RED, [255] * 3, [127] * 3, [255] * 3], atol=1)


@pytest.mark.parametrize("kind", ["GIF", "GIF without an end", "WebP", "PNG", "TIFF"])
def test_only_the_first_frame_of_an_animation_is_decoded(kind: str, loads: list[tuple[int, int]]) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in (RED, GREEN, BLUE)]
    data = _file(frames[0], kind.split()[0], save_all=True, append_images=frames[1:], duration=50, loop=0)
    if kind.endswith("end"):  # 30 MB of invalid frames
        second = data.rindex(b"\x21\xf9\x04")
        data = data[:second] + data[second:-1] * 300_000
    photo = Photo.open(data)
    assert photo.animated
    assert str(photo).endswith(", first frame")
    np.testing.assert_allclose(photo.pixels(1).rgb[15, 20].astype(int), RED, atol=2)
    assert len(loads) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG with EXIF at its end", "WebP", "TIFF", "AVIF", "HEIF"])
def test_a_photo_is_turned_as_its_exif_says(
    quarters: Image.Image, kind: str, orientation: int, loads: list[tuple[int, int]]
) -> None:
    if kind.endswith("end"):
        data = _file(stored(quarters, orientation))
        data = data[:-12] + chunk(b"eXIf", exif(orientation).removeprefix(b"Exif\0\0")) + data[-12:]
    else:
        data = _file(stored(quarters, orientation), kind, exif=exif(orientation))
    loads.clear()
    photo = Photo.open(data)
    assert loads == [] or kind in ("AVIF", "HEIF")
    assert (photo.width, photo.height, photo.pixels(1).rgb.shape) == (96, 64, (64, 96, 3))
    np.testing.assert_allclose(_corners(photo.pixels(1).rgb), COLOURS, atol=10)


@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0garbage" * 9, b"\0" * 40, exif(0), exif(9)]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_invalid_exif_is_ignored(quarters: Image.Image, kind: str, block: bytes) -> None:
    np.testing.assert_allclose(_corners(_pixels(_file(quarters, kind, exif=block))), COLOURS, atol=10)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1 / 4, 1 / 2, 1])
def test_the_transform_maps_a_point_to_its_place_in_a_scaled_decode(orientation: int, scale: float) -> None:
    """At sizes that the decoder's blocks don't divide, so that the last ones reach over the edge."""
    seen = Image.new("RGB", (1301, 1003), (10, 10, 10))
    places = [(61.5, 40.5), (1201.5, 907.5), (655.5, 121.5)]
    for x, y in places:
        seen.paste((250, 250, 250), (int(x - 7.5), int(y - 7.5), int(x + 8.5), int(y + 8.5)))
    photo = Photo.open(_file(stored(seen, orientation), "JPEG", exif=exif(orientation)))
    pixels = photo.pixels(scale)
    assert pixels.scale == pytest.approx(scale, rel=0.01)
    grey = pixels.rgb[:, :, 0].astype(float) - 10
    for place in places:
        x, y = pixels.transform() @ [*place, 1]
        left, top, reach = round(x), round(y), round(16 * scale)
        part = grey[max(top - reach, 0) : top + reach + 1, max(left - reach, 0) : left + reach + 1].clip(0)
        found_x = max(left - reach, 0) + (part.sum(axis=0) * np.arange(part.shape[1])).sum() / part.sum()
        found_y = max(top - reach, 0) + (part.sum(axis=1) * np.arange(part.shape[0])).sum() / part.sum()
        assert (found_x, found_y) == pytest.approx((x, y), abs=0.3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_part_is_cropped_from_the_photo_as_people_see_it(kind: str, orientation: int) -> None:
    seen = colour_photo("cyan", (999, 701), seed=2).resize((999, 701))
    photo = Photo.open(_file(stored(seen, orientation), kind, exif=exif(orientation)))
    box = (101.5, 50.0, 901.0, 650.25)
    part = photo.resized((200, 150), box=box)
    expected = seen.resize((200, 150), Image.Resampling.BICUBIC, box=box)
    assert part.shape == (150, 200, 3)
    assert np.sqrt(np.mean((part.astype(float) - np.asarray(expected)) ** 2)) < (0.8 if kind == "PNG" else 2.5)


@pytest.mark.parametrize(
    ("size", "box", "decoded"),
    [
        ((400, 300), None, (800, 600)),
        ((100, 10), (800.0, 0.0, 1600.0, 300.0), (400, 300)),
        ((10, 30), (0.0, 600.0, 1600.0, 900.0), (400, 300)),
    ],
)
def test_a_jpeg_is_decoded_at_twice_the_size_asked_for(
    size: tuple[int, int], box: Box | None, decoded: tuple[int, int], loads: list[tuple[int, int]]
) -> None:
    photo = Photo.open(_file(colour_photo("green", (1600, 1200)), "JPEG"))
    assert photo.resized(size, box=box).shape == (size[1], size[0], 3)
    assert loads == [decoded]


def _gif_with_a_frame_at(*place: int) -> bytes:
    data = _file(Image.new("P", (8, 8)), "GIF")
    at = data.index(b",\0\0\0\0") + 1
    return data[:at] + struct.pack("<4H", *place) + data[at + 8 :]


@pytest.mark.parametrize(
    "data",
    [
        *(that_claims(kind, 60_000, 60_000) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF")),
        *(that_claims("PNG", *size) for size in ((10_001, 5), (5, 10_001))),
        *(_gif_with_a_frame_at(*place) for place in ((0, 0, 60_000, 60_000), (60_000, 60_000, 8, 8), (0, 9_999, 8, 8))),
    ],
)
def test_a_photo_that_declares_too_large_a_size_is_refused_without_decoding(
    data: bytes, loads: list[tuple[int, int]]
) -> None:
    with pytest.raises(PhotoError, match=r"^height or width out of range$"):
        Photo.open(data)
    assert loads == []


def test_an_avif_is_recognised_by_any_of_its_brands(quarters: Image.Image) -> None:
    data = _file(quarters, "AVIF")
    assert Photo.open(data[:8] + b"mif1" + data[12:]).kind == "AVIF"
    with pytest.raises(PhotoError, match=r"^the file is not a photo, or its beginning is damaged$"):
        Photo.open(b"\0\0\0\x20ftypisom\0\0\0\0isomavif")


@pytest.mark.parametrize(
    ("kind", "missing", "reason"),
    [
        ("HEIF", "pillow_heif", "HEIC photos need the package pillow-heif, which is not installed here"),
        ("AVIF", "PIL.AvifImagePlugin", "AVIF photos need Pillow 11.3 or newer, which is not installed here"),
        ("AVIF", "", "AVIF photos need a build of Pillow that can read them, which is not installed here"),
    ],
)
def test_a_missing_decoder_is_not_reported_as_a_bad_photo(
    quarters: Image.Image, monkeypatch: pytest.MonkeyPatch, kind: str, missing: str, reason: str
) -> None:
    data = _file(quarters, kind)
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.delattr(PIL, missing.removeprefix("PIL."), raising=False)
    else:
        monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    with pytest.raises(DecoderMissing, match=f"^{reason}$"):
        Photo.open(data)
