# SPDX-License-Identifier: AGPL-3.0-only
"""Graphics cards: what the kernel tells of any, and more of one of Nvidia, by its driver's library (NVML)."""

import ctypes
import platform
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

_FILES = ("proc/driver/nvidia/version", "sys/class/drm/renderD*/device/uevent", "sys/class/accel/*/device/uevent")
"""They name cards, NPUs and their drivers."""


class _Memory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def used_mb(number: int) -> int | None:
    """What all processes use of a card's memory, in MB; None without such a card. number: of the card, from 0."""
    with suppress(OSError, AttributeError):
        (nvml, handle), memory = _nvidia(number), _Memory()
        if not nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
            used: int = memory.used
            return round(used / 1e6)
    return None


def driver_key(number: int, root: Path = Path("/")) -> str:
    """Differs if the kernel, a card or its driver does. root: of the kernel's files."""
    digest, text = sha256(platform.release().encode()), ctypes.create_string_buffer(96)
    for path in sorted(path for pattern in _FILES for path in root.glob(pattern)):
        with suppress(OSError):
            digest.update(path.read_bytes())
    with suppress(OSError, AttributeError):
        nvml, handle = _nvidia(number)
        nvml.nvmlDeviceGetName(handle, text, len(text))
        digest.update(text.value)
        nvml.nvmlSystemGetDriverVersion(text, len(text))
        digest.update(text.value)
    return digest.hexdigest()[:8]


def _nvidia(number: int) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """The library, and a card in it. Raises OSError, AttributeError."""
    nvml, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)):
        raise OSError("there is no such card")
    return nvml, handle
