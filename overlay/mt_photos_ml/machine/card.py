# SPDX-License-Identifier: AGPL-3.0-only
"""A graphics card of Nvidia, as its driver's library tells of it (NVML)."""

import ctypes
from contextlib import suppress


class _Memory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def used_mb(number: int) -> int | None:
    """What all processes use of a card's memory, in MB; None without such a card. number: of the card, from 0."""
    with suppress(OSError, AttributeError):
        nvml, handle, memory = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p(), _Memory()
        failed = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle))
        if not (failed or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))):
            used: int = memory.used
            return round(used / 1e6)
    return None
