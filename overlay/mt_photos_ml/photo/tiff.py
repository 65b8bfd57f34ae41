# SPDX-License-Identifier: AGPL-3.0-only
"""TIFF: which decoder reads a file correctly, because each silently misreads some kinds. Camera RAW files, most of them
TIFF inside: the largest JPEG that the camera embedded."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any

from PIL import TiffImagePlugin

from .mending import jpeg_size

Tags = Mapping[int, Any]

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR, _SUB_IFDS, _FORMAT = 274, 277, 284, 330, 339
_READ = {_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR, _FORMAT}
_MOST_IFDS = 32

_SENSOR = (32803, 34892)  # photometric interpretations: colour filter array, LinearRaw
_RAW_BEGINS = re.compile(  # Canon CR2, Olympus, Panasonic, Fujifilm, Minolta, Sigma, Canon CR3
    rb"II\*\0....CR|II(RO|RS|U\0)|MMOR|FUJIFILMCCD-RAW|\0MRM|FOVb|....ftypcrx ", re.DOTALL
)
_SMALLEST_PREVIEW_PX = 640
_MOST_PREVIEWS = 1000
_SAME_SIZE = 1.05  # a sensor is up to 5% longer than its photo


@dataclass(frozen=True)
class Preview:
    """A JPEG in a camera RAW file. size: width and height of the full photo that it shows, before it is turned."""

    jpeg: bytes
    size: tuple[int, int]
    orientation: int | None


def directories(data: bytes) -> list[Tags]:
    """The tags in _READ of each picture in a TIFF, the first picture first; none for other files."""
    found, seen, header = list[Tags](), set[int](), data[:16] if b"+" in data[2:4] else data[:8]
    with contextlib.suppress(Exception):  # of a damaged file, those before the damage
        places, file = [TiffImagePlugin.ImageFileDirectory_v2(header).next], BytesIO(data)
        while places and len(seen) < _MOST_IFDS:
            if (place := places.pop(0)) in seen or not place:
                continue
            seen.add(place)
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(place)
            tags.load(file)
            found.append({tag: tags[tag] for tag in _READ & tags.keys()})
            places += [tags.next, *_numbers(tags.get(_SUB_IFDS, 0))]
    return found


def is_raw(data: bytes, pictures: list[Tags]) -> bool:
    """Whether a file with these directories is a camera RAW file."""
    begins_small = len(pictures) > 1 and pictures[0].get(_SUBFILE) == 1
    return begins_small or any(map(_is_of_sensor, pictures)) or bool(_RAW_BEGINS.match(data))


def _is_of_sensor(tags: Tags) -> bool:
    return tags.get(_PHOTOMETRIC) in _SENSOR


def preview(data: bytes, pictures: list[Tags]) -> Preview | None:
    """The largest JPEG in a camera RAW file; None if there is none, or if it is small."""
    places = (match.start() for match in re.finditer(rb"\xff\xd8\xff[\xc0-\xfe]", data))
    sizes = {place: sides for place in islice(places, _MOST_PREVIEWS) if (sides := jpeg_size(data, place))}
    place = max(sizes, key=lambda place: sizes[place][0] * sizes[place][1], default=0)
    width, height = sizes.get(place, (0, 0))
    if max(width, height) < _SMALLEST_PREVIEW_PX:
        return None
    longest = max((max(size(tags)) for tags in pictures if {_WIDTH, _HEIGHT} <= tags.keys()), default=0)
    ratio = longest / max(width, height)
    shown = (width, height) if ratio < _SAME_SIZE else (round(width * ratio), round(height * ratio))
    if (cmt1 := data.find(b"CMT1")) > 0:  # a CR3 keeps its tags there
        pictures = directories(data[cmt1 + 4 : cmt1 + 100_000])
    return Preview(data[place:], shown, next((tags[_ORIENTATION] for tags in pictures if _ORIENTATION in tags), None))


def size(tags: Tags) -> tuple[int, int]:
    """Width and height after decoding, which turns the picture upright."""
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    return (height, width) if tags.get(_ORIENTATION) in (5, 6, 7, 8) else (width, height)


def is_negative(tags: Tags) -> bool:
    """Whether white is stored as zero; OpenCV does not invert it."""
    return bool(tags.get(_PHOTOMETRIC, 1) == 0)


def is_read_by_pillow(tags: Tags) -> bool:
    """Whether Pillow reads such a picture correctly. Measured by writing each kind with tifffile."""
    bits, signed, planes = _bits(tags), _format(tags) not in (1, 4), tags.get(_PLANAR, 1) == 2
    photometric, samples = tags.get(_PHOTOMETRIC, 1), tags.get(_SAMPLES, 1)
    if bits <= 8:
        return not signed and photometric in (0, 1, 2, 3, 5, 6) and not (planes and photometric <= 1 and samples > 1)
    if bits != 16 or signed or photometric not in (1, 2, 5):
        return False
    return bool(tags.get(_COMPRESSION, 1) != 1 if planes else samples == 1 or photometric != 1)


def is_read_by_opencv(tags: Tags) -> bool:
    """Whether OpenCV correctly reads such a picture, which Pillow does not. Measured in the same way."""
    colours = {0: (1,), 1: (1,), 2: (3, 4)}.get(tags.get(_PHOTOMETRIC, 1), ())
    has_numbers = _bits(tags) in (32, 64) or (_bits(tags) == 16 and _format(tags) in (1, 2))
    return has_numbers and tags.get(_PLANAR, 1) == 1 and tags.get(_SAMPLES, 1) in colours


def describe(tags: Tags) -> str:
    """A description such as `16 bits, CMYK, in planes`."""
    numbers = {2: "signed ", 3: "floating point "}.get(_format(tags), "")
    colours = {0: "grey", 1: "grey", 2: "RGB", 3: "a palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
    photometric, samples = tags.get(_PHOTOMETRIC, 1), tags.get(_SAMPLES, 1)
    parts = [f"{_bits(tags)} {numbers}bits", f"{colours.get(photometric, f'colours of kind {photometric}')}"]
    if samples > {0: 1, 1: 1, 2: 3, 5: 4}.get(photometric, samples):
        parts[1] += " with transparency"
    return ", ".join(parts + ["in planes"] * (tags.get(_PLANAR, 1) == 2))


def _bits(tags: Tags) -> int:
    return max(_numbers(tags.get(_BITS, 1)))


def _format(tags: Tags) -> int:
    return max(_numbers(tags.get(_FORMAT, 1)))


def _numbers(value: Any) -> Iterator[int]:
    yield from (value if isinstance(value, tuple) else (value,))
