# SPDX-License-Identifier: AGPL-3.0-only
"""The photos below a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")


def photos_of(folder: Path) -> Iterator[Path]:
    """By their names; but for what a NAS keeps beside them, previews and deleted files."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in ".@#"]
        yield from (Path(parent, file) for file in files if file.lower().endswith(SUFFIXES))
