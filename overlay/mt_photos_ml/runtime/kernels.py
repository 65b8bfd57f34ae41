# SPDX-License-Identifier: AGPL-3.0-only
"""Which Nvidia cards this build of onnxruntime has code for."""

import struct
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path

from ..machine import card

_FAT_BINARY = 0xBA55ED50
"""The first bytes of a fat binary: a header, then an entry for each kind of card."""


def describe_card(number: int) -> str | None:
    """Which card this is and which cards onnxruntime has code for, in words; None without a card."""
    import onnxruntime as ort

    if not (found := card.about(number)):
        return None
    (name, (major, minor)), known = found, list[int]()
    with suppress(OSError, ValueError, LookupError, struct.error):  # a library that can't be read
        known = capabilities(Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so")
    said = f"the card is {name}, of compute capability {major}.{minor}; onnxruntime {ort.__version__} is built "
    said += f"with CUDA {ort.cuda_version}" if ort.cuda_version else "without CUDA"
    if known:
        said += f" and has code for {', '.join(f'{each // 10}.{each % 10}' for each in known)}"
    return said if not known or major in {each // 10 for each in known} else f"{said}, none made for this card"


def capabilities(library: Path) -> list[int]:
    """The compute capabilities, times ten, that a shared library of 64 bits has code for: those of its first fat
    binary, since a build has the same in all. Raises OSError, ValueError, LookupError or struct.error."""
    with library.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names = struct.unpack_from("<HHH", data, 0x3A)
        sections = [struct.unpack_from("<I20xQ", data, table + index * size) for index in range(count)]
        places, begin = dict(sections), sections[names][1]
        at = places[data.find(b".nv_fatbin\0", begin) - begin]
        magic, _, header, length = struct.unpack_from("<IHHQ", data, at)
        if magic != _FAT_BINARY:
            raise ValueError(f"{library} has no fat binary")
        found, at, end = set[int](), at + header, at + header + length
        while at < end:
            _, _, header, length, capability = struct.unpack_from("<HHIQ12xI", data, at)
            found.add(capability)
            at += (header + length) or end
    return sorted(found)
