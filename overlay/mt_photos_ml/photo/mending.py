# SPDX-License-Identifier: AGPL-3.0-only
"""Repairs files that the decoder refuses, mostly by removing parts that the picture does not need."""

import re
import struct
import zlib
from itertools import islice

import numpy as np

_LARGEST_PX = 10_000
_LEAST_PART = 10  # at least a tenth of a picture must be there to fill up the rest
_MOST_TRIES = 8  # to find the next part of a picture; without a limit, a hostile file would take forever
_MOST_PARTS = 1000
_PNG_PARTS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_PARTS = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L", b"EXIF")
_TIFF_PARTS = {254, *range(256, 260), 262, 266, 273, 274, *range(277, 280), 284, 317, *range(320, 326), 330}
_TIFF_PARTS |= {338, 339, 347, *range(512, 522), 529, 530, 532}  # the tags to keep
_ADOBE = 0xEE  # JPEG's APP14, which tells how colours are stored


def mend(data: bytes) -> bytes:
    """Reduces a PNG, JPEG, WebP or TIFF to the parts that its first picture needs, fills up a WebP that was cut short,
    and converts a BMP of any layout to 32 bits per pixel. Returns other files, and those that it can't mend, unchanged.
    A damaged file may raise any error."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        return _tiff(data)
    return _bmp(data) if data.startswith(b"BM") else data


def _png(data: bytes) -> bytes:
    """Searches for the next part of the picture if a length can't be right."""
    parts, at, tries = [data[:8]], 8, 0
    while at + 8 <= len(data) and tries < _MOST_TRIES:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in _PNG_PARTS:
            if kind != b"tRNS" or _has_checksum(data, at):
                parts.append(data[at:end])
            at = end
        elif data[end + 4 : end + 8] in _PNG_PARTS or any(_has_checksum(data, place) for place in (at, end)):
            at = end
        else:
            names = islice(re.compile(b"|".join(_PNG_PARTS)).finditer(data, at + 8), _MOST_TRIES)
            at = next((name.start() - 4 for name in names if _has_checksum(data, name.start() - 4)), len(data))
            tries += 1
    return b"".join(parts)


def _has_checksum(data: bytes, at: int) -> bool:
    """Whether the PNG chunk at this offset is complete and has the right checksum."""
    length = int.from_bytes(data[at : at + 4])
    if at + 12 + length > len(data):
        return False
    content = memoryview(data)[at + 4 : at + 8 + length]
    return data[at + 8 + length : at + 12 + length] == struct.pack(">I", zlib.crc32(content))


def jpeg_size(data: bytes, at: int) -> tuple[int, int] | None:
    """Width and height of the JPEG whose markers begin at this offset; None if they lead to no decodable picture."""
    size = None
    for _ in range(_MOST_PARTS):
        if at + 9 > len(data) or data[at] != 0xFF:
            break
        marker, length, height, width = struct.unpack_from(">xBHxHH", data, at)
        if marker == 0xDA:
            return size
        if marker in (0xC0, 0xC1, 0xC2):
            size = width, height
        if marker == 0xFF:
            at += 1
        elif marker == 0xD8:
            at += 2
        elif marker >= 0xC0 and not 0xD0 <= marker <= 0xD9:
            at += 2 + length
        else:
            break
    return None


def _jpeg(data: bytes) -> bytes:
    """Removes all metadata but EXIF and Adobe's. If a length can't be right, starts at the marker that leads to the
    largest picture."""
    if jpeg_size(data, 0) is None:
        places = [match.start() for match in re.finditer(rb"\xff[\xc0-\xc2\xc4\xdb\xdd][\0-\3]", data[: 1 << 20])]
        sizes = {place: np.prod(size) for place in places[:_MOST_PARTS] if (size := jpeg_size(data, place))}
        return b"\xff\xd8" + data[max(sizes, key=lambda place: sizes[place]) :] if sizes else data
    parts, at = [data[:2]], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0] if data[at + 1] != 0xFF else at + 1
        is_metadata = 0xE1 <= data[at + 1] <= 0xEF or data[at + 1] in (0xFE, 0xFF)
        if not is_metadata or data[at + 1] == _ADOBE or data[at + 4 : at + 10] == b"Exif\0\0":
            parts.append(data[at:end])
        at = end
    return b"".join([*parts, data[at:]])


def _webp(data: bytes) -> bytes:
    """Keeps the first frame of an animation, if it is as large as the picture. Fills a missing end with zeros."""
    parts, at, frame = dict[bytes, bytes](), 12, b""
    for _ in range(_MOST_PARTS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"ANMF":
            frame = frame or data[at + 14 : at + 20]
            at += 24
            continue
        end = at + 8 + length + length % 2
        if kind in _WEBP_PARTS and kind not in parts and (end <= len(data) or kind != b"EXIF"):
            content = data[at + 8 : end]
            if length > _LEAST_PART * len(content):
                return data
            if kind == b"VP8L" and end > len(data):
                (sides,) = struct.unpack_from("<I", content, 1)  # 14 bits each; zeros take up to 2 bits a pixel
                length += min(((sides & 0x3FFF) + 1) * ((sides >> 14 & 0x3FFF) + 1), _LARGEST_PX**2) // 4
            content = content.ljust(length + length % 2, b"\0")
            parts[kind] = struct.pack("<4sI", kind, length) + content
        elif not data[end : end + 3].isalnum():
            found = re.compile(b"|".join(_WEBP_PARTS)).search(data, at + 4)
            end = found.start() if found else len(data)
        at = end
    if header := parts.get(b"VP8X"):
        if frame and frame != header[12:18]:
            return data
        flags = header[8] & 0x10 | 8 * (b"EXIF" in parts)  # transparency, EXIF
        parts[b"VP8X"] = header[:8] + bytes([flags]) + header[9:]
    content = b"WEBP" + b"".join(parts[kind] for kind in _WEBP_PARTS if kind in parts)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _tiff(data: bytes) -> bytes:
    """Keeps only the entries in _TIFF_PARTS of the first directory, in the same place."""
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    end = at + 2 + 12 * count
    entries = [data[place : place + 12] for place in range(at + 2, end, 12)]
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _TIFF_PARTS]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + data[end : end + 4]
    return data[:at] + directory.ljust(end + 4 - at, b"\0") + data[end + 4 :]


def _bmp(data: bytes) -> bytes:
    """Converts a BMP with 16 or 32 bits per pixel in a layout of its own to 32 bits in the usual layout."""
    offset, header, width, height, _, bits, packing = struct.unpack_from("<10xIIiiHHI", data)
    if bits not in (16, 32) or packing not in (3, 6) or not 0 < max(width, abs(height)) <= _LARGEST_PX:
        return data
    masks = struct.unpack_from("<4I", data, 54)
    stride = -(-width * bits // 32) * 4
    rows = np.frombuffer(data, np.uint8, stride * abs(height), offset).reshape(abs(height), stride)
    stored = rows[:, : width * bits // 8].copy().view(f"<u{bits // 8}").astype(np.uint32)
    pixels = np.empty((*stored.shape, 4), np.uint8)
    for channel, mask in enumerate((masks[2], masks[1], masks[0], masks[3] if header >= 56 or packing == 6 else 0)):
        lowest = (mask & -mask).bit_length() - 1
        pixels[..., channel] = ((stored & mask) >> lowest) * (255.0 / (mask >> lowest)) + 0.5 if mask else 255
    info = struct.pack("<IiiHHI20x4I", 56, width, height, 1, 32, 3, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    return struct.pack("<2sIII", b"BM", 70 + pixels.size, 0, 70) + info + pixels.tobytes()
