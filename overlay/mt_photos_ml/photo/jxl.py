# SPDX-License-Identifier: AGPL-3.0-only
"""Reads the header of a JPEG XL file (ISO/IEC 18181), because Pillow's plugin decodes the whole file to read it."""

import struct
from collections.abc import Iterator

_BARE, _BOXES = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
_BOXES_READ = 1000  # a hostile file may have millions
_LENGTHS = (9, 13, 18, 30)
_RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def is_jxl(data: bytes) -> bool:
    return data.startswith((_BARE, _BOXES))


def size_and_turn(data: bytes) -> tuple[tuple[int, int], int]:
    """Width and height of what the plugin decodes, and the EXIF orientation to apply to that. Raises ValueError."""
    boxes = dict(_boxes(data)) if data.startswith(_BOXES) else {b"jxlc": data}
    stream = boxes.get(b"jxlc") or boxes.get(b"jxlp", b"")[4:]
    if not stream.startswith(_BARE):
        raise ValueError("there is no picture in it")
    bits = int.from_bytes(stream[2:20].ljust(18, b"\0"), "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def length() -> int:
        return 8 * (take(5) + 1) if is_small else take(_LENGTHS[take(2)]) + 1

    is_small = take(1)
    height, ratio = length(), take(3)
    width = height * _RATIOS[ratio - 1][0] // _RATIOS[ratio - 1][1] if ratio else length()
    turn = 1 + take(3) if not take(1) and take(1) else 1
    if b"jbrd" in boxes:  # made from a JPEG, which the plugin restores without turning it
        return (width, height), turn
    return (width, height) if turn < 5 else (height, width), 1


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the first 24 bytes of each box, the last box first, so that a dict keeps the first of a kind."""
    found, at = list[tuple[bytes, bytes]](), 0
    while at + 8 <= len(data) and len(found) < _BOXES_READ:
        length, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if length == 1 and begin + 8 <= len(data):
            (length,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        found.append((kind, data[begin : begin + 24]))
        at += max(length, 8) if length else len(data)
    return reversed(found)
