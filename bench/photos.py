# SPDX-License-Identifier: AGPL-3.0-only
"""Makes photos with a phone's noise and bytes, and pages of text, from the demo's pictures."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from demo.pictures import CJK_FONT, colour_photo, text_page

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
_RECIPE = 2  # of what is made; a change makes all photos be made again
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
    if name in (PAGE_12, PAGE_1440):
        page = np.asarray(text_page(lines(), size, CJK_FONT)[0])
        noise = np.random.default_rng(6).normal(0, 3, (*page.shape[:2], 1))
        image = Image.fromarray((page + noise).clip(0, 255).astype(np.uint8))
    else:
        image = colour_photo("green", min(size, SIZES[JPEG_12])).resize(size)
    file = BytesIO()
    image.save(file, "PNG" if name == PNG else "JPEG", quality=90)
    return file.getvalue()
