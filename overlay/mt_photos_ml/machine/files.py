# SPDX-License-Identifier: AGPL-3.0-only
"""Files that several processes share: one writer at a time, and in place whole or not at all."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One thread of one process at a time in this folder, which is made where it is missing. Raises OSError.

    Some network shares know no locks, and Windows has others: there several may be at work at once. The package
    filelock is not used, since its release in the oldest base image waits for ever on such a share.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sync(paths: Iterable[Path]) -> None:
    """Has the files written to the disk, before a rename: else a power cut could leave empty ones under their names."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder, but for what goes away meanwhile; 0 where there is none."""
    if path.is_file():
        return _bytes(path)
    return sum(_bytes(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def has_sha256(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1_of(path: Path) -> str:
    """What Git names a file by its content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
