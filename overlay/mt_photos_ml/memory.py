# SPDX-License-Identifier: AGPL-3.0-only
"""The process's own memory: kept from photo to photo, given back when there are none."""

import contextlib
import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT = 128 * 1024 * 1024
_MOST_MAPPED = 32 * 1024 * 1024  # the largest that glibc takes


def keep() -> None:
    """From now on glibc keeps what is freed for the next photo, up to 128 MiB a thread; else each decode would have its
    pages made anew, up to a tenth of its time."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _MOST_MAPPED)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Returns what is free to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError, AttributeError):  # mimalloc, which the base image puts in glibc's place
        ctypes.CDLL(None).mi_collect(True)
