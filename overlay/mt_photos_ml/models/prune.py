# SPDX-License-Identifier: AGPL-3.0-only
"""Finds and deletes what the cache no longer needs."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..runtime.prepared.runtime import find_stale
from ..settings import Settings
from .catalog import KNOWN
from .choice import in_use


def find_unused(settings: Settings) -> list[Path]:
    """Models that the settings don't use, and outdated prepared forms of those that they use."""
    used = {(ref.group, ref.name) for ref in in_use(settings).values()}
    unused: list[Path] = []
    for path in find_cached(settings.cache_folder):
        unused += find_stale(path) if (path.parent.name, path.name) in used else [path]
    return unused


def find_cached(cache: Path) -> Iterator[Path]:
    """The folders of models in the cache."""
    for task in KNOWN:
        if (cache / task).is_dir():
            yield from sorted(path for path in (cache / task).iterdir() if path.is_dir())


def delete(paths: Iterable[Path]) -> None:
    """Deletes folders; of a symbolic link only the link. Raises OSError."""
    for path in paths:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
