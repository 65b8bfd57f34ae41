# SPDX-License-Identifier: AGPL-3.0-only
"""The process's own memory: kept from photo to photo, returned to the system when there are none."""

import contextlib
import ctypes
import gc
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)


def configure_malloc() -> None:
    """Lets glibc keep up to 128 MiB of what is freed, because new pages take up to a tenth of a photo's decoding. All
    threads share one arena, because malloc_trim would leave each thread's own up to 64 MiB, and models are loaded in
    ever new threads."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        libc.mallopt(_M_TRIM_THRESHOLD, 128 << 20)
        libc.mallopt(_M_ARENA_MAX, 1)


def anonymous_mb() -> float:
    """What this process holds that belongs to no file, in MB; 0 on another system than Linux."""
    return _status_mb("RssAnon")


def mapped_mb() -> float:
    """What of files is mapped and in memory, in MB; the system can take it back."""
    return _status_mb("RssFile")


def _status_mb(name: str) -> float:
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{name}:")), 0.0)
    return 0.0


def trim_memory() -> None:
    """Returns what is free to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError, AttributeError):  # mimalloc, which the base image puts in glibc's place
        ctypes.CDLL(None).mi_collect(True)
