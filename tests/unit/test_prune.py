# SPDX-License-Identifier: AGPL-3.0-only
"""What is of no use any more is found in the cache, and nothing else is; as a command: test_cli.py."""

from pathlib import Path

import pytest

from mt_photos_ml.models.prune import delete, find_cached, find_unused
from mt_photos_ml.settings import Settings


def made(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "file").touch()
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(MACHINE_LEARNING_CACHE_FOLDER=str(tmp_path / "cache"), CLIP_VISUAL_MODEL_NAME="mine")


def test_models_that_nobody_names_are_of_no_use_and_of_those_in_use_what_is_outdated(settings: Settings) -> None:
    cache = settings.cache_folder
    used = {made(cache / "clip" / settings.clip_visual_model_name), made(cache / "ocr" / settings.ocr_model_name)}
    unused = [made(cache / "clip" / "b"), made(cache / "clip" / "a"), made(cache / "ocr" / "old")]
    unused.append(made(cache / "facial-recognition" / settings.clip_visual_model_name))  # of another task
    outdated = made(cache / "clip" / settings.clip_visual_model_name / "visual" / "prepared" / "0123")
    made(cache / "huggingface" / "of another program")
    (cache / "clip" / "c").touch()
    assert set(find_cached(cache)) == used | set(unused)
    assert set(find_unused(settings)) == {outdated, *unused}
    assert [path.name for path in find_cached(cache) if path in unused[:2]] == ["a", "b"]


def test_a_link_is_deleted_and_not_what_it_leads_to(tmp_path: Path) -> None:
    folder, kept = made(tmp_path / "folder"), made(tmp_path / "kept")
    (link := tmp_path / "link").symlink_to(kept)
    delete([folder, link])
    assert list(tmp_path.iterdir()) == [kept]
    assert (kept / "file").exists()
