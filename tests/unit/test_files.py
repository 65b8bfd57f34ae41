# SPDX-License-Identifier: AGPL-3.0-only
"""Sizes of files and folders; locks and writing to the disk: test_hub.py."""

from pathlib import Path

from mt_photos_ml.machine.files import size_of


def test_all_files_below_a_folder_count_and_a_link_as_what_it_leads_to(tmp_path: Path) -> None:
    for path, size in (("a", 1), ("b/c", 20), ("b/d/e", 300), (".f/g", 4000)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(bytes(size))
    assert size_of(tmp_path) == 4321
    assert size_of(tmp_path / "b/d/e") == 300
    assert size_of(tmp_path / "nowhere") == 0
    (tmp_path / "b/link").symlink_to(tmp_path / "a")
    (tmp_path / "b/lost").symlink_to(tmp_path / "nowhere")  # as a file that is deleted meanwhile
    assert size_of(tmp_path / "b") == 321
