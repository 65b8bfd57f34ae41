# SPDX-License-Identifier: AGPL-3.0-only
"""Files in the cache that are no longer used are found with their size. test_cli.py tests the command."""

from pathlib import Path

from mt_photos_ml.machine.files import size_of
from mt_photos_ml.models.prune import delete, find_cached, find_unused
from mt_photos_ml.settings import Settings


def made(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "file").touch()
    return path


def test_models_that_no_setting_names_and_outdated_prepared_forms_are_unused(tmp_path: Path) -> None:
    settings = Settings.model_validate({"cache_folder": tmp_path, "clip_visual_model_name": "mine"})
    used = {made(tmp_path / "clip" / "mine"), made(tmp_path / "ocr" / settings.ocr_model_name)}
    unused = [made(tmp_path / "clip" / "b"), made(tmp_path / "clip" / "a"), made(tmp_path / "ocr" / "old")]
    unused.append(made(tmp_path / "facial-recognition" / "mine"))  # of another task
    outdated = made(tmp_path / "clip" / "mine" / "visual" / "prepared" / "0123")
    made(tmp_path / "huggingface" / "of another program")
    (tmp_path / "clip" / "c").touch()
    assert set(find_cached(tmp_path)) == used | set(unused)
    assert set(find_unused(settings)) == {outdated, *unused}


def test_a_link_is_deleted_and_its_target_is_kept(tmp_path: Path) -> None:
    folder, kept = made(tmp_path / "folder"), made(tmp_path / "kept")
    (link := tmp_path / "link").symlink_to(kept)
    delete([folder, link])
    assert list(tmp_path.iterdir()) == [kept]
    assert (kept / "file").exists()


def test_the_size_of_a_folder_counts_all_files_below_it_and_the_targets_of_links(tmp_path: Path) -> None:
    for path, size in (("a", 1), ("b/c", 20), ("b/d/e", 300), (".f/g", 4000)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(bytes(size))
    assert size_of(tmp_path) == 4321
    assert size_of(tmp_path / "b/d/e") == 300
    assert size_of(tmp_path / "nowhere") == 0
    (tmp_path / "b/link").symlink_to(tmp_path / "a")
    (tmp_path / "b/lost").symlink_to(tmp_path / "nowhere")  # like a file that is deleted meanwhile
    assert size_of(tmp_path / "b") == 321
