# SPDX-License-Identifier: AGPL-3.0-only
"""The processor: whether it runs the libraries, asked before they are imported, and how many cores there are."""

import ctypes
import os
import sys
from importlib import metadata

_NEEDED = {0: "SSE3", 9: "SSSE3", 13: "CMPXCHG16B", 19: "SSE4.1", 20: "SSE4.2", 23: "POPCNT"}
"""Of x86-64-v2, by the bit of CPUID leaf 1, ecx."""

_WITHOUT = (2, 4)  # numpy's wheels before this version run on any x86-64


def require_processor() -> None:
    """Ends the process with a line that says what is missing, if numpy needs it."""
    missing, version = _missing(), metadata.version("numpy")
    if missing and tuple(map(int, version.split(".")[:2])) >= _WITHOUT:
        print(
            f"mt-photos-ml: this processor has no {', '.join(missing)}, which numpy {version} needs (x86-64-v2). In a "
            "virtual machine set the type of its processor to `host`. On an old machine install an older numpy, "
            "`.venv/bin/pip install 'numpy<2.4'`, or use an image of upstream before v3.",
            file=sys.stderr,
        )
        sys.exit(4)  # gunicorn's own code for an app that can't be loaded: it does not try again


def _missing() -> list[str]:
    """None on another kind of processor, or if the C library does not tell (glibc before 2.33)."""
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
