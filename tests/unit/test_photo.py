# SPDX-License-Identifier: AGPL-3.0-only
"""Photos of every kind become 8-bit RGB as people see them; bad ones an explanation in words."""

import struct
import sys
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageFile

from demo.pictures import colour_photo
from mt_photos_ml.photo import Box, Photo, Pixels, decoders
from mt_photos_ml.photo.decoders import DecoderMissing, PhotoError
from photos import chunk, encoded, exif, stored, that_claims

pillow_heif.register_heif_opener()
OUT_OF_RANGE = "height or width out of range"
DAMAGED = "the photo is damaged"
UNKNOWN = "the file is not a photo, or its beginning is damaged"
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
EXIF_KINDS = ["JPEG", "PNG", "WebP", "TIFF", "AVIF", "HEIF"]
RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 180, 40), (40, 60, 210), (235, 220, 50)


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    return encoded(image, kind, **{**KINDS.get(kind, {}), **options})


def _pixels(data: bytes) -> NDArray[np.uint8]:
    rgb = Photo.open(data).pixels(1).rgb
    assert rgb.dtype == np.uint8
    assert rgb.shape[2] == 3
    return rgb


@pytest.fixture(scope="module")
def quarters() -> Image.Image:
    """Four colours, none of them symmetric to another."""
    image = Image.new("RGB", (96, 64))
    for i, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        image.paste(colour, (i % 2 * 48, i // 2 * 32, i % 2 * 48 + 48, i // 2 * 32 + 32))
    return image


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The size of every picture that is decoded, as it goes on."""
    sizes: list[tuple[int, int]] = []

    def load(self: ImageFile.ImageFile, *, load: Any = ImageFile.ImageFile.load) -> Any:
        if self.tile:
            sizes.append(self.size)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    return sizes


@pytest.mark.parametrize("kind", KINDS)
def test_the_content_tells_the_kind_and_the_size_and_nothing_is_decoded(
    quarters: Image.Image, kind: str, loads: list[tuple[int, int]]
) -> None:
    photo = Photo.open(_file(quarters, kind))
    assert (photo.kind.upper(), photo.width, photo.height) == (kind.upper(), 96, 64)
    assert str(photo) == f"{photo.kind} 96x64"
    if kind not in ("AVIF", "HEIF"):
        assert loads == []
    assert photo.decode_ms == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_rgb(quarters: Image.Image, kind: str) -> None:
    np.testing.assert_allclose(_pixels(_file(quarters, kind)).astype(int), np.asarray(quarters), atol=25)
    corners = _pixels(_file(quarters, kind))[[10, 10, 50, 50], [10, 80, 10, 80]].astype(int)
    np.testing.assert_allclose(corners, [RED, GREEN, BLUE, YELLOW], atol=6)


def test_jpegs_may_be_progressive_grey_and_cmyk(quarters: Image.Image) -> None:
    expected = np.asarray(quarters).astype(int)
    np.testing.assert_allclose(_pixels(_file(quarters, "JPEG", progressive=True)).astype(int), expected, atol=25)
    grey = quarters.convert("L")
    np.testing.assert_allclose(
        _pixels(_file(grey, "JPEG")).astype(int), np.asarray(grey.convert("RGB")).astype(int), atol=25
    )
    cmyk = _pixels(_file(quarters.convert("CMYK"), "JPEG")).astype(int)
    np.testing.assert_allclose(cmyk[10, 10], RED, atol=8)
    np.testing.assert_allclose(cmyk[50, 80], YELLOW, atol=8)


def test_a_phones_jpeg_with_a_second_picture_is_a_jpeg(quarters: Image.Image) -> None:
    data = _file(quarters, "MPO", save_all=True, append_images=[Image.new("RGB", (20, 20))])
    photo = Photo.open(data)
    assert (photo.kind, photo.width, photo.height) == ("JPEG", 96, 64)
    np.testing.assert_allclose(photo.pixels(1).rgb[10, 10].astype(int), RED, atol=8)


def test_sixteen_bits_are_brought_to_eight_by_their_high_byte() -> None:
    values = np.array([[0, 257, 0x8080, 0xFFFF]], np.uint16)
    grey = Image.fromarray(values)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(_pixels(_file(grey, kind))[0, :, 0], [0, 1, 0x80, 255])
    dark = Image.fromarray(np.array([[0, 100, 255]], np.uint16))
    assert _pixels(_file(dark)).max() == 0  # dark is dark, not stretched
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" + struct.pack(">6H", 0xFFFF, 0x8080, 0, 0x4040, 0xC0C0, 0x0101))
    rgb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(_pixels(rgb), [[[255, 0x80, 0], [0x40, 0xC0, 1]]])


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.5, 1.0], [0, 127, 255]), ([0.0, 128.0, 255.0], [0, 128, 255])]
)
def test_a_tiff_of_fractions_is_read_from_zero_to_one_or_to_255(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    np.testing.assert_array_equal(_pixels(_file(image, "TIFF"))[0, :, 0], expected)


def test_a_tiff_of_whole_numbers_is_read(quarters: Image.Image) -> None:
    image = Image.fromarray(np.array([[0, 100, 255]], np.int32))
    np.testing.assert_array_equal(_pixels(_file(image, "TIFF"))[0, :, 0], [0, 100, 255])


def test_black_and_white_is_black_and_white() -> None:
    image = Image.new("1", (16, 16))
    image.putpixel((3, 4), 1)
    for kind in ("PNG", "BMP", "TIFF", "GIF"):
        rgb = _pixels(_file(image, kind))
        assert rgb[4, 3].tolist() == [255, 255, 255]
        assert rgb.sum() == 3 * 255


def test_transparent_pixels_lie_on_white_and_opaque_ones_stay_as_they_are() -> None:
    rgba = Image.new("RGBA", (4, 1))
    for x, pixel in enumerate([(220, 30, 30, 255), (220, 30, 30, 0), (0, 0, 0, 128), (255, 255, 255, 255)]):
        rgba.putpixel((x, 0), pixel)
    for kind in ("PNG", "WebP", "TIFF"):
        rgb = _pixels(_file(rgba, kind, **({"exact": True} if kind == "WebP" else {})))[0]
        np.testing.assert_allclose(rgb.astype(int), [RED, [255] * 3, [127] * 3, [255] * 3], atol=1)
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (90, 255))
    assert _pixels(_file(grey))[0].tolist() == [[255] * 3, [90] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    assert _pixels(_file(palette))[0].tolist() == [list(RED), list(BLUE)]
    for kind in ("PNG", "GIF"):
        assert _pixels(_file(palette, kind, transparency=0))[0].tolist() == [[255] * 3, list(BLUE)]
    opaque = np.random.default_rng(1).integers(0, 255, (8, 8, 4), np.uint8)
    opaque[..., 3] = 255
    np.testing.assert_array_equal(_pixels(_file(Image.fromarray(opaque))), opaque[..., :3])


@pytest.mark.parametrize("kind", ["GIF", "WebP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken_and_no_other_decoded(kind: str, loads: list[tuple[int, int]]) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in (RED, GREEN, BLUE)]
    data = _file(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, loop=0)
    photo = Photo.open(data)
    assert photo.animated
    assert str(photo).endswith(", first frame")
    np.testing.assert_allclose(photo.pixels(1).rgb[15, 20].astype(int), RED, atol=2)
    assert len(loads) <= 1


def test_a_gif_without_an_end_is_read_to_its_first_frame_only() -> None:
    """The frames after the first are no pictures at all, and there are 30 MB of them."""
    frames = [Image.new("RGB", (40, 30), colour) for colour in (RED, GREEN)]
    data = _file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    second = data.rindex(b"\x21\xf9\x04")
    photo = Photo.open(data[:second] + data[second:-1] * 300_000)
    assert photo.animated
    np.testing.assert_allclose(photo.pixels(1).rgb[15, 20].astype(int), RED, atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", EXIF_KINDS)
def test_a_photo_is_turned_as_its_exif_says(quarters: Image.Image, kind: str, orientation: int) -> None:
    data = _file(stored(quarters, orientation), kind, exif=exif(orientation))
    photo = Photo.open(data)
    assert (photo.width, photo.height) == (96, 64)
    assert photo.pixels(1).rgb.shape == (64, 96, 3)
    corners = photo.pixels(1).rgb[[10, 10, 50, 50], [10, 80, 10, 80]].astype(int)
    np.testing.assert_allclose(corners, [RED, GREEN, BLUE, YELLOW], atol=10)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_behind_the_pixels_of_a_png_counts(
    quarters: Image.Image, orientation: int, loads: list[tuple[int, int]]
) -> None:
    data = _file(stored(quarters, orientation))
    exif_chunk = chunk(b"eXIf", exif(orientation).removeprefix(b"Exif\0\0"))
    loads.clear()
    photo = Photo.open(data[:-12] + exif_chunk + data[-12:])
    assert loads == []
    assert (photo.orientation, photo.width, photo.height) == (orientation, 96, 64)
    np.testing.assert_array_equal(photo.pixels(1).rgb, np.asarray(quarters))


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0garbage" * 9, b"\0" * 40])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_damaged_exif_is_ignored(quarters: Image.Image, kind: str, block: bytes) -> None:
    photo = Photo.open(_file(quarters, kind, exif=block))
    assert photo.orientation == 1
    assert photo.pixels(1).rgb.shape == (64, 96, 3)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_there_is_not_is_ignored(quarters: Image.Image, value: int) -> None:
    assert Photo.open(_file(quarters, "JPEG", exif=exif(value))).orientation == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1 / 4, 1 / 2, 1])
def test_the_transform_leads_to_the_same_place_in_a_scaled_decode(orientation: int, scale: float) -> None:
    """Of sizes that can't be divided, in which a decoder's blocks stick out over the edge."""
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
def test_a_dot_in_a_12_megapixel_photo_is_where_the_transform_says(orientation: int) -> None:
    seen = Image.new("RGB", (4001, 3003) if orientation < 5 else (3003, 4001))
    x, y = (seen.width - 37, seen.height - 25)
    seen.paste((255, 255, 255), (x - 2, y - 2, x + 3, y + 3))
    pixels = Photo.open(_file(stored(seen, orientation), "JPEG", exif=exif(orientation))).pixels(1 / 4)
    assert pixels.scale == pytest.approx(1 / 4, rel=0.01)
    grey = pixels.rgb[:, :, 0].astype(float)
    rows, columns = np.nonzero(grey > 30)
    weights = grey[rows, columns]
    found = np.average(columns, weights=weights), np.average(rows, weights=weights)
    assert found == pytest.approx(tuple(pixels.transform() @ [x, y, 1]), abs=0.6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_part_is_cut_out_of_the_photo_as_people_see_it(kind: str, orientation: int) -> None:
    seen = colour_photo("cyan", (999, 701), seed=2).resize((999, 701))
    photo = Photo.open(_file(stored(seen, orientation), kind, exif=exif(orientation)))
    box = (101.5, 50.0, 901.0, 650.25)
    part = photo.resized((200, 150), box=box)
    expected = seen.resize((200, 150), Image.Resampling.BICUBIC, box=box)
    assert part.shape == (150, 200, 3)
    assert np.sqrt(np.mean((part.astype(float) - np.asarray(expected)) ** 2)) < (0.8 if kind == "PNG" else 2.5)


def test_the_largest_decode_is_kept_and_used_again(loads: list[tuple[int, int]]) -> None:
    photo = Photo.open(_file(colour_photo("green", (1600, 1200)), "JPEG"))
    loads.clear()
    assert photo.pixels(0.2).scale == 1 / 4
    assert photo.pixels(0.25).scale == 1 / 4
    assert photo.resized((100, 75)).shape == (75, 100, 3)
    assert loads == [(400, 300)]
    assert photo.pixels(0.3).scale == 1 / 2
    assert photo.pixels(0.1).scale == 1 / 2
    assert photo.pixels(7.0).scale == 1
    assert photo.pixels(1.0).scale == 1
    assert photo.pixels(7.0).scale == 1
    assert loads == [(400, 300), (800, 600), (1600, 1200)]
    assert photo.decode_ms > 0


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_001, 5), (5, 10_001), (65_000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
def test_a_photo_that_claims_too_much_is_refused_undecoded(
    kind: str, width: int, height: int, loads: list[tuple[int, int]]
) -> None:
    with pytest.raises(PhotoError, match=f"^{OUT_OF_RANGE}$"):
        Photo.open(that_claims(kind, width, height))
    assert loads in ([], [(8, 8)])  # of making the file


@pytest.mark.parametrize("place", [(0, 0, 60_000, 60_000), (60_000, 60_000, 8, 8), (0, 9_999, 8, 8)])
def test_a_gif_frame_beyond_its_canvas_is_refused_undecoded(
    place: tuple[int, int, int, int], loads: list[tuple[int, int]]
) -> None:
    data = _file(Image.new("P", (8, 8)), "GIF")
    at = data.index(b",\0\0\0\0") + 1
    loads.clear()
    with pytest.raises(PhotoError, match=f"^{OUT_OF_RANGE}$"):
        Photo.open(data[:at] + struct.pack("<4H", *place) + data[at + 8 :])
    assert loads == []


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 0), (0, 5)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_absurd_headers_are_refused(kind: str, size: tuple[int, int]) -> None:
    with pytest.raises(PhotoError):
        Photo.open(that_claims(kind, *size)).pixels(1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WebP", "TIFF", "BMP"])
def test_ten_thousand_pixels_a_side_are_taken_and_one_more_is_not(kind: str) -> None:
    for size in ((10_000, 3), (3, 10_000)):
        rgb = Photo.open(_file(Image.new("RGB", size, RED), kind)).pixels(1).rgb
        assert rgb.shape == (size[1], size[0], 3)
        np.testing.assert_allclose(rgb[-1, -1].astype(int), RED, atol=6)
    for size in ((10_001, 3), (3, 10_001)):
        with pytest.raises(PhotoError, match=f"^{OUT_OF_RANGE}$"):
            Photo.open(_file(Image.new("RGB", size, RED), kind))


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("scale", [1, 1 / 4])
def test_a_jpeg_cut_short_is_used_as_far_as_it_goes(share: float, progressive: bool, scale: float) -> None:
    image = colour_photo("red", (640, 480))
    data = _file(image, "JPEG", progressive=progressive)
    rgb = Photo.open(data[: int(len(data) * share)]).pixels(scale).rgb
    whole = Photo.open(data).pixels(scale).rgb
    assert rgb.shape == whole.shape
    rows = slice(0, int(rgb.shape[0] * share * 0.5)) if not progressive else slice(None)
    assert np.abs(rgb[rows].astype(int) - whole[rows]).mean() < 30


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_jpeg_of_two_pictures_cut_in_either_is_used(share: float) -> None:
    image = colour_photo("blue", (640, 480))
    data = _file(image, "MPO", save_all=True, append_images=[image])
    for scale in (1, 1 / 4):
        rgb = Photo.open(data[: int(len(data) * share)]).pixels(scale).rgb
        assert rgb.shape == (480 * scale, 640 * scale, 3)
        whole = Photo.open(data).pixels(scale).rgb
        rows = slice(0, rgb.shape[0] // 2 if share < 0.5 else None)
        assert np.abs(rgb[rows].astype(int) - whole[rows]).mean() < 30


@pytest.mark.parametrize("kind", ["PNG", "WebP", "BMP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_other_kinds_cut_short_are_explained_in_words(kind: str, share: float) -> None:
    noise = np.random.default_rng(3).integers(0, 255, (120, 160, 3), np.uint8)
    data = _file(Image.fromarray(noise), kind)
    with pytest.raises(PhotoError, match=f"^({DAMAGED}|{UNKNOWN})$"):
        Photo.open(data[: int(len(data) * share)]).pixels(1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_the_photo_does_not_matter(quarters: Image.Image, kind: str) -> None:
    data = _file(quarters, kind)
    np.testing.assert_array_equal(_pixels(data + b"and a video behind it" * 500), _pixels(data))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"hello, this is text", b"%PDF-1.7", b"<svg/>", b"\xff\xd8\xff", b"\0" * 999]
)
def test_what_is_no_photo_is_explained_in_words(data: bytes) -> None:
    with pytest.raises(PhotoError, match=f"^({UNKNOWN}|the file is empty)$"):
        Photo.open(data)


def _mutations(data: bytes, count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(len(data))
    for i in range(count):
        changed = np.frombuffer(data, np.uint8).copy()
        reach = len(data) if i % 2 else min(len(data), 64)  # half of them in the header
        at = rng.integers(0, reach, rng.integers(1, 12))
        changed[at] = rng.integers(0, 256, len(at))
        yield changed.tobytes()[: int(rng.integers(1, len(data) + 1)) if i % 5 == 0 else None]


@pytest.mark.parametrize("kind", KINDS)
def test_three_hundred_damaged_files_of_a_kind_raise_nothing_but_photo_errors(quarters: Image.Image, kind: str) -> None:
    data = _file(quarters, kind, **({"exif": exif(6)} if kind in EXIF_KINDS else {}))
    reasons = []
    for changed in _mutations(data, 300):
        try:
            photo = Photo.open(changed)
            photo.resized((20, 20))
            photo.pixels(1)
        except PhotoError as error:
            reasons.append(str(error))
    assert reasons
    assert set(reasons) <= {DAMAGED, UNKNOWN, OUT_OF_RANGE}


def test_a_decoder_that_is_not_installed_is_not_the_photos_fault(
    quarters: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _file(quarters, "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        DecoderMissing, match=r"^HEIC photos need the package pillow-heif, which is not installed here$"
    ):
        Photo.open(data)
    data = _file(quarters, "AVIF")
    with monkeypatch.context() as other:
        other.setattr(AvifImagePlugin, "SUPPORTED", False)
        with pytest.raises(
            DecoderMissing, match=r"^AVIF photos need a build of Pillow that can read them, which is no"
        ):
            Photo.open(data)
    monkeypatch.delattr(PIL, "AvifImagePlugin")
    monkeypatch.setitem(sys.modules, "PIL.AvifImagePlugin", None)
    with pytest.raises(DecoderMissing, match=r"^AVIF photos need Pillow 11.3 or newer, which is not installed here$"):
        Photo.open(data)


def test_an_avif_under_another_brand_is_an_avif_and_not_every_box_is_a_photo(quarters: Image.Image) -> None:
    data = _file(quarters, "AVIF")
    assert Photo.open(data[:8] + b"mif1" + data[12:]).kind == "AVIF"
    for video in (b"\0\0\0\x20ftypmp42\0\0\0\0mp42isom", b"\0\0\0\x20ftypisom\0\0\0\0isomavif"):
        assert decoders._formats(video) == decoders._FORMATS


def test_a_second_picture_that_cannot_be_read_is_none() -> None:
    class Damaged(Image.Image):
        @property
        def is_animated(self) -> bool:
            raise EOFError

    assert not decoders.is_animated(Damaged())


def test_a_png_whose_chunks_lead_back_is_read_once(quarters: Image.Image) -> None:
    data = _file(quarters)
    endless = struct.pack(">I", (1 << 32) - 12) + b"tEXt"  # as a number with a sign: 12 bytes back, which is here
    assert Photo.open(data[:-12] + endless + data[-12:]).orientation == 1


def test_what_is_rgb_already_is_not_copied_and_all_else_has_eight_bits(quarters: Image.Image) -> None:
    assert decoders.to_rgb(quarters) is quarters
    assert decoders._to_8_bit(Image.fromarray(np.ones((2, 2), np.float32))).mode == "L"


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0, 100, 256], np.int32, [0, 0, 0]),
        ([0, 100, 65535], np.int32, [0, 0, 255]),
        ([0, 65535, 131070], np.int32, [0, 127, 255]),
        ([-1, 0.5, 2], np.float32, [0, 127, 255]),
        ([0, 1, 3], np.float32, [0, 1, 3]),
        ([0, 0.5, 1, np.inf, np.nan], np.float32, [0, 127, 255, 255, 0]),
        ([0, 0.25, 0.25], np.float32, [0, 63, 63]),
    ],
)
def test_grey_goes_by_its_own_white(values: list[float], kind: type, expected: list[int]) -> None:
    rgb = np.asarray(decoders.to_rgb(Image.fromarray(np.array([values], kind))))
    assert rgb[0, :, 0].tolist() == expected


def test_tall_grey_photos_have_all_their_rows() -> None:
    rows = np.repeat(np.arange(1000, dtype=np.uint16)[:, None] * 65, 3, axis=1)
    np.testing.assert_array_equal(_pixels(_file(Image.fromarray(rows)))[:, :, 0], (rows * (255 / 65535)).astype(int))


def test_the_transform_of_half_a_photo_is_exact() -> None:
    pixels = Pixels(np.zeros((2, 2, 3), np.uint8), 0.5, (0.25, 0.75))
    np.testing.assert_array_equal(pixels.transform(), [[0.5, 0, 0], [0, 0.5, 0.5]])


def test_one_pixel_is_a_photo() -> None:
    assert _pixels(_file(Image.new("RGB", (1, 1), RED))).tolist() == [[list(RED)]]


def test_the_whole_at_its_own_size_is_the_photo() -> None:
    seen = colour_photo("cyan", (90, 70), seed=2)
    np.testing.assert_array_equal(Photo.open(_file(seen)).resized(seen.size), np.asarray(seen))


@pytest.mark.parametrize("filter", [Image.Resampling.BICUBIC, Image.Resampling.BOX])
def test_a_large_photo_is_first_reduced_to_four_times_the_size(filter: Image.Resampling) -> None:
    seen = colour_photo("cyan", (1600, 1200), seed=2)
    expected = seen.resize((100, 75), filter, reducing_gap=4.0)
    np.testing.assert_array_equal(Photo.open(_file(seen)).resized((100, 75), filter=filter), np.asarray(expected))


@pytest.mark.parametrize(
    ("size", "box", "decoded"),
    [
        ((400, 300), None, (800, 600)),
        ((100, 10), (800.0, 0.0, 1600.0, 300.0), (400, 300)),
        ((10, 30), (0.0, 600.0, 1600.0, 900.0), (400, 300)),
    ],
)
def test_a_part_is_decoded_at_twice_the_size_that_is_asked_for(
    size: tuple[int, int], box: Box | None, decoded: tuple[int, int], loads: list[tuple[int, int]]
) -> None:
    photo = Photo.open(_file(colour_photo("green", (1600, 1200)), "JPEG"))
    loads.clear()
    photo.resized(size, box=box)
    assert loads == [decoded]


@pytest.mark.parametrize(("size", "decoded"), [((1600, 1200), (200, 150)), ((7, 800), (2, 200)), ((800, 7), (200, 2))])
def test_a_jpeg_is_decoded_at_an_eighth_as_far_as_it_has_pixels(
    size: tuple[int, int], decoded: tuple[int, int], loads: list[tuple[int, int]]
) -> None:
    photo = Photo.open(_file(Image.new("RGB", size, RED), "JPEG"))
    loads.clear()
    photo.pixels(1 / 8)
    assert loads == [decoded]


def test_the_file_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Photo.open(_file(colour_photo("green", (160, 120)), "JPEG"))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened again"))
    assert photo.pixels(1).rgb.shape == (120, 160, 3)


def test_all_that_decoding_takes_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000, 2000))
    monkeypatch.setattr("mt_photos_ml.photo.time", SimpleNamespace(perf_counter=ticks.__next__))
    photo = Photo.open(_file(colour_photo("green", (160, 120)), "JPEG"))
    told = []
    for scale in (1 / 4, 1 / 4, 1):  # decoded and turned, only turned, decoded and turned
        photo.pixels(scale)
        told.append(photo.decode_ms)
    photo.resized((10, 10))
    assert [*told, photo.decode_ms] == [2000, 3000, 5000, 6000]
