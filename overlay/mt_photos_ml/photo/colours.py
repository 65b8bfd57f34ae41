# SPDX-License-Identifier: AGPL-3.0-only
"""Converts decoded pictures to 8-bit RGB."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat

_LIGHT = 170  # of 255


def to_rgb(image: Image.Image, *, contrast: bool = False) -> Image.Image:
    """Converts a picture of any mode to 8-bit RGB: takes the high byte of 16 bits, puts transparency on white, and
    leaves the rest to Pillow. contrast: on black, if most of it is transparent and what is drawn is light."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values, key = np.asarray(image), image.info.get("transparency")
        image = from_numbers(values)
        if isinstance(key, int):
            image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        kind, image = image.format, image.convert("RGBA")
        alpha = image.getchannel("A")
        lowest, highest = alpha.getextrema()
        if lowest != 255 and not (kind == "BMP" and highest == 0):  # which has no alpha, only an unused byte
            paper = "black" if contrast and _is_light_on_nothing(image, alpha) else "white"
            canvas = Image.new("RGB", image.size, paper)
            canvas.paste(image, mask=alpha)
            return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_light_on_nothing(image: Image.Image, alpha: Image.Image) -> bool:
    ink = ImageStat.Stat(image.convert("L"), alpha)
    return ink.count[0] > 0 and ink.mean[0] > _LIGHT and ImageStat.Stat(alpha).mean[0] < 128


def from_numbers(values: NDArray[Any]) -> Image.Image:
    """Scales (H, W) grey or (H, W, 3 or 4) RGB of any number type to 8 bits, by the picture's own white. Works on 256
    rows at a time, because 32 bits take four times the memory."""
    high = float(np.nanmax(values, initial=0, where=np.isfinite(values)))
    if values.dtype.kind == "f" and high <= 2:
        white = 1.0  # linear light, whose highlights may exceed white
    elif high <= 255 and values.dtype.itemsize > 2:
        white = 255.0
    else:
        white = max(high, 32767.0 if values.dtype == np.int16 else 65535.0)
    scaled = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):
        rows = np.nan_to_num(values[top : top + 256].astype(np.float32))
        scaled[top : top + 256] = np.clip(rows, 0, white) * (255 / white)
    return Image.fromarray(scaled)
