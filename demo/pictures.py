# SPDX-License-Identifier: AGPL-3.0-only
"""Draws the pictures that the stand-in models understand: faces, colour photos, pages of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (215, 35, 35),
    "orange": (245, 135, 25),
    "yellow": (245, 220, 50),
    "green": (50, 155, 60),
    "cyan": (40, 200, 210),
    "blue": (40, 80, 205),
    "purple": (125, 50, 165),
    "pink": (250, 155, 190),
    "brown": (120, 75, 40),
    "black": (22, 22, 24),
    "white": (245, 245, 245),
    "grey": (135, 135, 135),
}

# ArcFace's five points in its 112x112 crop: eyes, nose, mouth corners. A drawn face has just these proportions:
# its disc of skin is centred at CROP_CENTRE with radius CROP_RADIUS of that crop.
ARCFACE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float32
)
CROP_CENTRE, CROP_RADIUS = (56.0, 64.0), 47.0
LANDMARKS: NDArray[np.float32] = (ARCFACE - np.array(CROP_CENTRE, np.float32)) / np.float32(CROP_RADIUS)

SKIN: Colour = (238, 184, 134)
# What is drawn on the skin, as ellipses (x, y, half width, half height) in radii from the centre of the disc.
EYES = tuple((float(x), float(y), 0.19, 0.15) for x, y in LANDMARKS[:2])
CHEEKS = ((-0.57, 0.30, 0.15, 0.15), (0.57, 0.30, 0.15, 0.15))
NOSE = ((0.0, float(LANDMARKS[2, 1]), 0.07, 0.09),)
MOUTH = ((0.0, float(LANDMARKS[3:, 1].mean()), 0.31, 0.12),)
FEATURES = (*EYES, *CHEEKS, *NOSE, *MOUTH)
# The five regions with the colours of an identity, as discs (x, y, radius): hat, hair, eyes, cheeks, mouth.
REGIONS = (
    ((0.0, -1.13, 0.08), (-0.16, -1.13, 0.08), (0.16, -1.13, 0.08)),
    ((-0.9, -0.7, 0.08), (0.9, -0.7, 0.08)),
    tuple((x, y, 0.09) for x, y, _, _ in EYES),
    tuple((x, y, 0.10) for x, y, _, _ in CHEEKS),
    tuple((x, MOUTH[0][1], 0.07) for x in (-0.12, 0.0, 0.12)),
)
_FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/truetype/arphic/uming.ttc",
    "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
)
CJK_FONT = next((path for path in map(Path, _FONTS) if path.is_file()), None)
"""A font for Chinese; None if this machine has none."""
LOW, HIGH = 50, 235
IDENTITIES = 30


@dataclass(frozen=True)
class DrawnFace:
    """Where a face was drawn, in pixels: its box (x1, y1, x2, y2) and its five points in ArcFace's order."""

    identity: int
    box: Box
    points: tuple[Point, ...]


def skin_share() -> tuple[float, float]:
    """Share of the disc that is bare skin, and how far below the disc's centre that skin's centroid lies, in radii."""
    areas = [(pi * w * h, y) for _, y, w, h in FEATURES]
    bare = pi - sum(area for area, _ in areas)
    return bare / pi, -sum(area * y for area, y in areas) / bare


def identity_colours(identity: int) -> list[Colour]:
    """The five colours (one a region) of identity 0..29: rows of a Hadamard matrix and their opposites, so that no two
    identities correlate."""
    if not 0 <= identity < IDENTITIES:
        raise ValueError(f"identity {identity} is not in 0..{IDENTITIES - 1}")
    row = identity % 15 + 1
    bits = [((row & column).bit_count() + identity // 15) % 2 for column in range(1, 16)]
    red, green, blue = ([HIGH if bit else LOW for bit in bits[i::3]] for i in range(3))
    return list(zip(red, green, blue, strict=True))


def draw_face(image: Image.Image, centre: Point, radius: float, identity: int) -> DrawnFace:
    """Draws an upright face into an RGB image: a disc of skin at `centre` with `radius` (pixels), hair to 1.3 radii
    around it and shoulders to 1.7 below. With other skin within a radius of the disc, the detector may miss it."""
    hat, hair, eyes, cheeks, mouth = identity_colours(identity)
    cx, cy = centre
    left, top, side = int(cx - 2 * radius), int(cy - 2 * radius), int(4 * radius) + 2
    fine = 4 if radius < 200 else 2
    patch = image.crop((left, top, left + side, top + side))
    patch = patch.resize((side * fine, side * fine), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(patch)

    def place(x: float, y: float, width: float, height: float) -> Box:
        x1, x2 = (round((cx - left + (x + to) * radius) * fine) for to in (-width, width))
        y1, y2 = (round((cy - top + (y + to) * radius) * fine) for to in (-height, height))
        return x1, y1, x2 - 1, y2 - 1

    draw.pieslice(place(0, 1.7, 1.25, 0.8), 180, 360, (58, 68, 92))
    draw.pieslice(place(0, 0, 1.28, 1.28), 165, 375, hair)
    draw.pieslice(place(0, 0, 1.30, 1.30), 245, 295, hat)
    draw.ellipse(place(0, 0, 1, 1), SKIN)
    for ellipses, colour in ((EYES, (252, 252, 252)), (CHEEKS, cheeks), (NOSE, (176, 104, 84)), (MOUTH, mouth)):
        for ellipse in ellipses:
            draw.ellipse(place(*ellipse), colour)
    for x, y, _, height in EYES:
        draw.ellipse(place(x, y, height, height), eyes)
        draw.ellipse(place(x, y, 0.04, 0.04), (15, 15, 15))
    image.paste(patch.resize((side, side), Image.Resampling.BOX), (left, top))
    points = tuple((float(cx + x * radius), float(cy + y * radius)) for x, y in LANDMARKS)
    return DrawnFace(identity, (cx - radius, cy - radius, cx + radius, cy + radius), points)


def colour_photo(name: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """An RGB picture of `size` (width, height) mostly of the colour `name` (a key of COLOURS): shaded, noisy, with two
    blobs of other colours."""
    rng = np.random.default_rng([seed, *name.encode()])
    base = Image.new("RGB", size, COLOURS[name])
    draw = ImageDraw.Draw(base)
    for other in rng.choice([c for c in COLOURS if c != name], 2, replace=False):
        x, y, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(0.10, 0.18) * min(size)
        draw.ellipse((x - r, y - r, x + r, y + r), COLOURS[str(other)])
    return _lit(base, rng)


def group_photo(size: tuple[int, int], identities: Sequence[int], seed: int = 0) -> tuple[Image.Image, list[DrawnFace]]:
    """An RGB picture of `size` (width, height): one face for each of `identities`, apart from each other, on a meadow
    under the sky; and where they are."""
    rng = np.random.default_rng(seed)
    width, height = size
    base = Image.new("RGB", size, (140, 185, 225))
    ImageDraw.Draw(base).rectangle((0, int(height * rng.uniform(0.4, 0.6)), width, height), (92, 140, 70))
    photo = _lit(base, rng)
    if not identities:
        return photo, []
    columns = min(range(1, len(identities) + 1), key=lambda n: abs(width / n - height / -(-len(identities) // n)))
    cell = width / columns, height / -(-len(identities) // columns)
    faces = []
    for i, identity in enumerate(identities):
        x, y = rng.uniform(0.44, 0.56, 2)
        centre = float(i % columns + x) * cell[0], float(i // columns + y) * cell[1]
        faces.append(draw_face(photo, centre, rng.uniform(0.15, 0.22) * min(cell), identity))
    return photo, faces


def text_page(
    lines: Sequence[str], size: tuple[int, int], font: Path | None = None, margin: float = 0.06
) -> tuple[Image.Image, list[Box]]:
    """A light RGB page of `size` (width, height) with black `lines`, as large as fit inside `margin` (a share of each
    side), and each line's box of ink in pixels. Without a font file only Latin text can be drawn."""

    def load(points: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.truetype(font, points) if font else ImageFont.load_default(points)

    width, height = size
    page = Image.new("RGB", size, (250, 249, 245))
    draw = ImageDraw.Draw(page)
    widest = max([draw.textlength(line, load(100)) for line in lines] or [0])
    pitch = height * (1 - 2 * margin) / max(len(lines), 1)
    face = load(max(4, int(min(pitch / 1.5, 100 * width * (1 - 2 * margin) / max(widest, 1)))))
    boxes = []
    for i, line in enumerate(lines):
        at = width * margin, height * margin + (i + 0.5) * pitch
        draw.text(at, line, (15, 15, 15), face, anchor="lm")
        boxes.append(draw.textbbox(at, line, face, anchor="lm"))
    return page, boxes


def _lit(base: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture with uneven light and the noise of a sensor."""
    across, down = rng.uniform(-0.1, 0.1, 2)
    x, y = np.linspace(-1, 1, base.width), np.linspace(-1, 1, base.height)[:, None]
    shaded = np.asarray(base) * (1 + across * x + down * y)[..., None] + rng.normal(0, 6, (base.height, base.width, 3))
    return Image.fromarray(shaded.clip(0, 255).astype(np.uint8))
