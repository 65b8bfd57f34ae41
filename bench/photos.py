# SPDX-License-Identifier: AGPL-3.0-only
"""Makes photos like a phone's in detail and in bytes, of noise at all scales with edges in it, and pages of text."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.pictures import CJK_FONT, text_page

Size = tuple[int, int]

JPEG_12, JPEG_48, JPEG_1440 = "12 MP JPEG", "48 MP JPEG", "1440×1080 JPEG"
PAGE_12, PAGE_1440, PNG = "12 MP page", "1440×1080 page", "PNG"
SIZES: Mapping[str, Size] = {
    JPEG_12: (4000, 3000),
    JPEG_48: (8000, 6000),
    JPEG_1440: (1440, 1080),
    PAGE_12: (4000, 3000),
    PAGE_1440: (1440, 1080),
    PNG: (2040, 1530),
}
_RECIPE = 1  # of what is made; a change makes all photos be made again
_LATIN = """Departures from platform 4|Hamburg 10:42 on time|Paris 11:05 delayed by 25 minutes
Please keep your luggage with you|Total: 1,284.50 EUR|Thank you for travelling with us"""
_CHINESE = """欢迎使用照片管理|北京市朝阳区建国路八十八号|今日天气晴朗适合拍照
合计金额一百二十八元|请妥善保管随身携带的物品|祝您旅途愉快"""
_MORE_LATIN = """Berlin 11:20 platform 7|Tickets are sold on board|The dining car is open
Seat 42, second class|Return within 30 days|Customer service 8 to 20"""


def lines() -> list[str]:
    """The twelve lines of the pages: half of them Chinese if there is a font for it."""
    halves = (half.replace("\n", "|").split("|") for half in (_LATIN, _CHINESE if CJK_FONT else _MORE_LATIN))
    return [line for pair in zip(*halves, strict=True) for line in pair]


def photos(folder: Path) -> dict[str, bytes]:
    """The files by name, the same each time; those that are in the folder are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        if not (path := folder / f"{name} {_RECIPE}").is_file():
            path.with_suffix(".part").write_bytes(photo(name, size))
            path.with_suffix(".part").rename(path)
    return {name: (folder / f"{name} {_RECIPE}").read_bytes() for name in SIZES}


def photo(name: str, size: Size) -> bytes:
    """One of the photos at any size (width, height in pixels)."""
    file, kind = BytesIO(), "PNG" if name == PNG else "JPEG"
    image = Image.fromarray(_page(size) if name in (PAGE_12, PAGE_1440) else _scene(size))
    image.save(file, kind, quality=90, compress_level=6)
    return file.getvalue()


def _scene(size: Size) -> NDArray[np.uint8]:
    """Noise of every octave, the finer the weaker as in nature, and over it shapes in which OCR sees no text."""
    small = max(size[0] // 4, 1), max(size[1] // 4, 1)
    rng, shapes, cells = np.random.default_rng(5), np.random.default_rng(2), 3
    scene = np.full((small[1], small[0], 3), (120, 128, 130), np.float32)
    while cells < min(small):
        coarse = rng.normal(0, 1, (cells, cells * 4 // 3, 3)).astype(np.float32)
        coarse = 0.8 * coarse.mean(axis=2, keepdims=True) + 0.2 * coarse  # light differs more than colour
        scene += 60 * (3 / cells) ** 0.75 * cv2.resize(coarse, small, interpolation=cv2.INTER_CUBIC)
        cells *= 2
    rgb = cv2.resize(scene.clip(10, 245).astype(np.uint8), size, interpolation=cv2.INTER_CUBIC)
    tint = np.full_like(rgb, 128)
    for _ in range(14):
        corners = shapes.uniform(0, 1, 2) * size + shapes.normal(0, 0.15, (5, 2)) * min(size)
        cv2.fillPoly(tint, [corners.astype(np.int32)], tuple(shapes.uniform(0, 255, 3)), cv2.LINE_AA)
    return _add_noise(np.asarray(cv2.addWeighted(rgb, 1, tint, 0.5, -64), np.uint8), rng, 5.6)


def _page(size: Size) -> NDArray[np.uint8]:
    """A page of lines() in a light that falls off."""
    shade = np.linspace(1, 0.85, size[0], dtype=np.float32)[None, :, None]
    page = np.asarray(text_page(lines(), size, CJK_FONT)[0]) * shade
    return _add_noise(page.astype(np.uint8), np.random.default_rng(6), 3.0)


def _add_noise(rgb: NDArray[np.uint8], rng: np.random.Generator, strength: float) -> NDArray[np.uint8]:
    """A sensor's, of this standard deviation, alike in neighbours, in squares that repeat: no decoder notices."""
    tile = np.pad(rng.normal(0, strength, (512, 512, 3)), ((0, 1), (0, 1), (0, 0)), "wrap")
    noise = (tile[:-1, :-1] + tile[1:, :-1] + tile[:-1, 1:] + tile[1:, 1:]) / 2
    for top, left in np.ndindex(-(-rgb.shape[0] // 512), -(-rgb.shape[1] // 512)):
        part = rgb[top * 512 : top * 512 + 512, left * 512 : left * 512 + 512]
        np.clip(part + noise[: part.shape[0], : part.shape[1]], 0, 255, out=part, casting="unsafe")
    return rgb
