# SPDX-License-Identifier: AGPL-3.0-only
"""Files that several processes share: locks, sizes, checksums, writing to the disk."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks this folder for one thread of one process, and creates it if missing. Locks nothing on Windows and on
    network shares without locks, on which the oldest base image's filelock waits for ever. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sync(paths: Iterable[Path]) -> None:
    """Flushes the files to the disk. Call it before renaming them, or a power cut could leave empty files."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 for a path that does not exist or is deleted meanwhile."""
    size = 0
    for file in [path] if path.is_file() else [Path(top, name) for top, _, names in os.walk(path) for name in names]:
        with suppress(OSError):
            size += file.stat().st_size
    return size


def has_sha256(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def has_git_sha1(path: Path, sha1: str) -> bool:
    """Whether this is Git's hash of the file. Reads the whole file into memory: for small files only."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == sha1
