# SPDX-License-Identifier: AGPL-3.0-only
"""Checks, before the libraries are imported, whether the processor can run them, and counts its cores."""

import ctypes
import os
import sys
from importlib import metadata

_NEEDED = {0: "SSE3", 9: "SSSE3", 13: "CMPXCHG16B", 19: "SSE4.1", 20: "SSE4.2", 23: "POPCNT"}
"""Features of x86-64-v2, by bit of ecx in CPUID leaf 1."""

_FIRST_NUMPY = (2, 4)  # the wheels of older versions run on any x86-64


def require_processor() -> None:
    """Ends the process with a message if the processor lacks features that numpy needs."""
    missing, version = _missing(), metadata.version("numpy")
    if missing and tuple(map(int, version.split(".")[:2])) >= _FIRST_NUMPY:
        print(
            f"mt-photos-ml: this processor has no {', '.join(missing)}, which numpy {version} needs (x86-64-v2). In a "
            "virtual machine, set the processor type to `host`. On an old machine, install an older numpy, "
            "`.venv/bin/pip install 'numpy<2.4'`, or use an image whose version is below v3.",
            file=sys.stderr,
        )
        sys.exit(4)  # gunicorn's status for an app that can't be loaded: it does not retry


def _missing() -> list[str]:
    """Features that the processor lacks; [] if it is not x86, or if the C library can't tell (glibc before 2.33)."""
    try:
        leaf_of = ctypes.CDLL(None).__x86_get_cpuid_feature_leaf
    except (AttributeError, OSError, TypeError):
        return []
    # `struct cpuid_feature` of glibc's sys/platform/x86.h begins with eax, ebx, ecx, edx
    leaf_of.restype, leaf_of.argtypes = ctypes.POINTER(ctypes.c_uint * 4), [ctypes.c_uint]
    ecx = leaf_of(0).contents[2]
    return [name for bit, name in _NEEDED.items() if not ecx >> bit & 1]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
