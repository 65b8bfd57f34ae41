# SPDX-License-Identifier: AGPL-3.0-only
"""Makes photos with the noise and file size of a phone's, and pages of text, from the demo's pictures."""

from collections.abc import Mapping
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image

from demo.pictures import CJK_FONT, colour_photo, text_page

JPEG_12, JPEG_48, JPEG_1440 = "12 MP JPEG", "48 MP JPEG", "1440×1080 JPEG"
PAGE_12, PAGE_1440, PNG = "12 MP page", "1440×1080 page", "PNG"
SIZES: Mapping[str, tuple[int, int]] = {
    JPEG_12: (4000, 3000),
    JPEG_48: (8000, 6000),
    JPEG_1440: (1440, 1080),
    PAGE_12: (4000, 3000),
    PAGE_1440: (1440, 1080),
    PNG: (2040, 1530),
}
CLIP, FACES, OCR = "/clip/img", "/represent", "/ocr"
ALL: Mapping[str, tuple[str, ...]] = {
    CLIP: (JPEG_12, JPEG_1440, JPEG_48, PNG),
    FACES: (JPEG_12, JPEG_1440, JPEG_48, PNG),
    OCR: (PAGE_12, PAGE_1440, JPEG_12, JPEG_48, PNG),
}
"""The photos that are sent to each route. The targets are about the first two of each."""
_LATIN = """Departures from platform 4|Hamburg 10:42 on time|Paris 11:05 delayed by 25 minutes|\
Please keep your luggage with you|Total: 1,284.50 EUR|Thank you for travelling with us"""
_CHINESE = """欢迎使用照片管理|北京市朝阳区建国路八十八号|今日天气晴朗适合拍照|合计金额一百二十八元|\
请妥善保管随身携带的物品|祝您旅途愉快"""
LINES = [*_LATIN.split("|"), *(_CHINESE if CJK_FONT else _LATIN).split("|")]
"""The twelve lines of a page, half of them Chinese if there is a font."""


@cache
def photo(name: str, size: tuple[int, int] | None = None) -> bytes:
    """The photo's file, the same each time. size: width and height in pixels instead of the photo's own."""
    size = size or SIZES[name]
    if name in (PAGE_12, PAGE_1440):
        page = np.asarray(text_page(LINES, size, CJK_FONT)[0])
        noise = np.random.default_rng(6).normal(0, 3, (*page.shape[:2], 1))
        image = Image.fromarray((page + noise).clip(0, 255).astype(np.uint8))
    else:
        image = colour_photo("green", min(size, SIZES[JPEG_12])).resize(size)
    file = BytesIO()
    image.save(file, "PNG" if name == PNG else "JPEG", quality=90)
    return file.getvalue()
