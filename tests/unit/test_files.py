# SPDX-License-Identifier: AGPL-3.0-only
"""Sizes of files that others write, move and delete meanwhile."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from mt_photos_ml.machine.files import size_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, size in (("a", 1), ("b/c", 20), ("b/d/e", 300), (".f/g", 4000)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(bytes(size))
    return tmp_path


def test_all_files_below_a_folder_count(folder: Path) -> None:
    assert size_of(folder) == 4321
    assert size_of(folder / "b") == 320
    assert size_of(folder / "b/d/e") == 300
    assert size_of(folder / "nowhere") == 0


def test_a_link_counts_as_what_it_leads_to(folder: Path) -> None:
    (folder / "b/link").symlink_to(folder / "a")
    (folder / "b/lost").symlink_to(folder / "nowhere")
    assert size_of(folder / "b") == 321
    assert size_of(folder / "b/link") == 1


class Listed:
    """The entries of a folder, one of which another process deletes once they were read."""

    read: Callable[..., Any] = staticmethod(os.scandir)
    goes = Path()

    def __init__(self, folder: str | Path | int) -> None:
        with self.read(folder) as entries:
            self._entries: list[os.DirEntry[str]] = list(entries)
        if not isinstance(folder, int) and Path(folder) == self.goes.parent:
            shutil.rmtree(self.goes) if self.goes.is_dir() else self.goes.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> os.DirEntry[str]:
        if not self._entries:
            raise StopIteration
        return self._entries.pop(0)


@pytest.mark.parametrize(("goes", "left"), [("b", 4001), ("b/d", 4021), ("b/d/e", 4021)])
def test_what_goes_while_it_is_looked_at_does_not_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch, goes: str, left: int
) -> None:
    monkeypatch.setattr(Listed, "goes", folder / goes)
    monkeypatch.setattr(os, "scandir", Listed)
    size = size_of(folder)
    monkeypatch.undo()
    assert size == left
