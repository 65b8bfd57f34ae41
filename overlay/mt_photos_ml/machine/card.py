# SPDX-License-Identifier: AGPL-3.0-only
"""What the kernel reports about graphics cards, and Nvidia's driver library (NVML) about Nvidia's."""

import ctypes
import platform
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

_FILES = ("proc/driver/nvidia/version", "sys/class/drm/renderD*/device/uevent", "sys/class/accel/*/device/uevent")
"""Files of the kernel that name cards, NPUs and their drivers."""


class _Memory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def used_mb(number: int) -> int | None:
    """The memory of a card in use by all processes, in MB; None without such a card. number: of the card, from 0."""
    memory = _Memory()
    if not _asked(number, ("nvmlDeviceGetMemoryInfo", [ctypes.byref(memory)])):
        return None
    used: int = memory.used
    return round(used / 1e6)


def about(number: int) -> tuple[str, tuple[int, int]] | None:
    """A card's name and its compute capability, such as (12, 0); None without such a card."""
    name, major, minor = ctypes.create_string_buffer(96), ctypes.c_int(), ctypes.c_int()
    capability = [ctypes.byref(major), ctypes.byref(minor)]
    if not _asked(number, ("nvmlDeviceGetName", [name, len(name)]), ("nvmlDeviceGetCudaComputeCapability", capability)):
        return None
    return name.value.decode(errors="replace"), (major.value, minor.value)


def _asked(number: int, *questions: tuple[str, Sequence[object]]) -> bool:
    """Calls these functions of the library with the card and these arguments; False without a card or if one fails."""
    with suppress(OSError, AttributeError):
        nvml, handle = _nvidia(number)
        return not any(getattr(nvml, name)(handle, *arguments) for name, arguments in questions)
    return False


def driver_key(number: int, root: Path = Path("/")) -> str:
    """A key that changes with the kernel, a card or its driver. root: of the kernel's files."""
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
    """The library and its handle of a card. Raises OSError, AttributeError."""
    nvml, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)):
        raise OSError("there is no such card")
    return nvml, handle
