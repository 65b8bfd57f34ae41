# SPDX-License-Identifier: AGPL-3.0-only
"""Makes photos like a phone's in detail and in bytes, of noise at all scales with edges in it, and pages of text."""

from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.pictures import CJK_FONT, text_page

Size = tuple[int, int]
Pixels = NDArray[np.uint8]

JPEG_12 = "12 MP JPEG"
JPEG_48 = "48 MP JPEG"
JPEG_1440 = "1440×1080 JPEG"
PAGE_12 = "12 MP page"
PAGE_1440 = "1440×1080 page"
PNG = "PNG"

SIZES: Mapping[str, Size] = {
    JPEG_12: (4000, 3000),
    JPEG_48: (8000, 6000),
    JPEG_1440: (1440, 1080),
    PAGE_12: (4000, 3000),
    PAGE_1440: (1440, 1080),
    PNG: (2040, 1530),
}
PAGES = (PAGE_12, PAGE_1440)

# Of what is made; a change makes all photos be made again.
_RECIPE = 1
_QUALITY = 90
_SHAPES = 2  # seed of those in which OCR sees no text
_LATIN = (
    "Departures from platform 4",
    "Hamburg 10:42 on time",
    "Paris 11:05 delayed by 25 minutes",
    "Please keep your luggage with you",
    "Total: 1,284.50 EUR",
    "Thank you for travelling with us",
)
_CHINESE = (
    "欢迎使用照片管理",
    "北京市朝阳区建国路八十八号",
    "今日天气晴朗适合拍照",
    "合计金额一百二十八元",
    "请妥善保管随身携带的物品",
    "祝您旅途愉快",
)
_LATIN_ONLY = (
    "Berlin 11:20 platform 7",
    "Tickets are sold on board",
    "The dining car is open",
    "Seat 42, second class",
    "Return within 30 days",
    "Customer service 8 to 20",
)


def lines() -> tuple[str, ...]:
    """The twelve lines of the pages: half of them Chinese where there is a font for it."""
    return tuple(line for pair in zip(_LATIN, _CHINESE if CJK_FONT else _LATIN_ONLY, strict=True) for line in pair)


def photos(folder: Path, names: Collection[str] = tuple(SIZES)) -> dict[str, bytes]:
    """The files by name, out of `folder` where they are there already, the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _kept(folder / f"{name} {_RECIPE}.{'png' if name == PNG else 'jpg'}", name) for name in names}


def _kept(path: Path, name: str) -> bytes:
    if not path.is_file():
        part = path.with_suffix(".part")
        part.write_bytes(photo(name, SIZES[name]))
        part.replace(path)
    return path.read_bytes()


def photo(name: str, size: Size) -> bytes:
    """One of the photos at any size (width, height in pixels)."""
    rgb = _page(size) if name in PAGES else _scene(size)
    file = BytesIO()
    image = Image.fromarray(rgb)
    if name == PNG:
        image.save(file, "PNG", compress_level=6)
    else:
        image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _scene(size: Size) -> Pixels:
    """Noise of every octave, the finer the weaker as in nature, and shapes with sharp edges over it."""
    width, height = size
    rng = np.random.default_rng(5)
    small = (max(width // 4, 1), max(height // 4, 1))
    scene = np.full((small[1], small[0], 3), (120, 128, 130), np.float32)
    cells = 3
    while cells < min(small):
        coarse = rng.normal(0, 1, (cells, cells * 4 // 3, 3)).astype(np.float32)
        coarse = 0.8 * coarse.mean(axis=2, keepdims=True) + 0.2 * coarse  # what is lit differs more than its colour
        scene += 60 * (3 / cells) ** 0.75 * cv2.resize(coarse, small, interpolation=cv2.INTER_CUBIC)
        cells *= 2
    rgb = np.asarray(cv2.resize(scene.clip(10, 245).astype(np.uint8), size, interpolation=cv2.INTER_CUBIC), np.uint8)
    tint, shapes = np.full_like(rgb, 128), np.random.default_rng(_SHAPES)
    for _ in range(14):
        corners = shapes.uniform(0, 1, 2) * size + shapes.normal(0, 0.15, (5, 2)) * min(size)
        cv2.fillPoly(tint, [corners.astype(np.int32)], tuple(shapes.uniform(0, 255, 3)), cv2.LINE_AA)
    rgb = np.asarray(cv2.addWeighted(rgb, 1, tint, 0.5, -64), np.uint8)
    return _noisy(rgb, rng, 5.6)


def _page(size: Size) -> Pixels:
    """A page of lines() in a light that falls off."""
    page = np.asarray(text_page(lines(), size, CJK_FONT)[0])
    shade = np.linspace(1, 0.85, size[0], dtype=np.float32)[None, :, None]
    return _noisy((page * shade).astype(np.uint8), np.random.default_rng(6), 3.0)


def _noisy(rgb: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """As a sensor sees it: noise of this standard deviation, in squares that repeat, which no decoder notices."""
    height, width, _ = rgb.shape
    tile = np.pad(rng.normal(0, strength, (512, 512, 3)), ((0, 1), (0, 1), (0, 0)), "wrap")
    noise = (
        tile[:-1, :-1] + tile[1:, :-1] + tile[:-1, 1:] + tile[1:, 1:]
    ) / 2  # neighbours alike, after a Bayer filter
    for top in range(0, height, 512):
        for left in range(0, width, 512):
            part = rgb[top : top + 512, left : left + 512]
            np.clip(part + noise[: part.shape[0], : part.shape[1]], 0, 255, out=part, casting="unsafe")
    return rgb
