# SPDX-License-Identifier: AGPL-3.0-only
"""The process's memory: keeps freed memory between photos, returns it when idle, and asks what is available."""

import contextlib
import ctypes
import gc
import math
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # mallopt(3)


def configure_malloc() -> None:
    """Lets glibc keep up to 128 MiB of freed memory, because new pages take up to a tenth of a photo's decoding time.
    All threads share one arena: malloc_trim shrinks only the main arena, each thread's own would keep up to 64 MiB, and
    each model is loaded in a new thread."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        libc.mallopt(_M_TRIM_THRESHOLD, 128 << 20)
        libc.mallopt(_M_ARENA_MAX, 1)


def anonymous_mb() -> float:
    """Memory of this process that belongs to no file, in MB; 0 on systems other than Linux."""
    return _status_mb("RssAnon")


def mapped_mb() -> float:
    """Mapped files in memory, in MB; the system can reclaim it."""
    return _status_mb("RssFile")


def _status_mb(name: str) -> float:
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{name}:")), 0.0)
    return 0.0


def available_mb() -> float:
    """Memory left before the system or the container's limit ends a process, in MB: free memory, swap and cached files.
    Infinite if the system doesn't tell."""
    machine = _numbers(Path("/proc/meminfo"))
    swap = machine.get("SwapFree:", 0) * 1024
    found = [machine.get("MemAvailable:", math.inf) * 1024 + swap]
    for folder, limit, used, files in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # another version of cgroups, or no limit ("max")
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            stat = _numbers(folder / "memory.stat")
            found.append(left + sum(stat.get(name, 0) for name in files))
            found[-1] += min(swap, int((folder / "memory.swap.max").read_text().replace("max", str(swap))))
    return min(found) / 1e6


def _numbers(file: Path) -> dict[str, int]:
    """The numbers by name, from lines with a name and a number."""
    with contextlib.suppress(OSError):
        return {line.split()[0]: int(line.split()[1]) for line in file.read_text().splitlines()}
    return {}


def _own(version: str) -> Path:
    """This process's own folder of cgroups; a container sees it as the root."""
    root = Path("/sys/fs/cgroup") / version
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == version and (root / path[1:] / "memory.stat").exists():
                return root / path[1:]
    return root


_CGROUPS = (
    (_own(""), "memory.max", "memory.current", ("inactive_file", "active_file")),
    (_own("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


def trim_memory() -> None:
    """Returns freed memory to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError, AttributeError):  # mimalloc, with which the base image replaces glibc's malloc
        ctypes.CDLL(None).mi_collect(True)
