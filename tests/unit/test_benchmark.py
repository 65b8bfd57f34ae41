# SPDX-License-Identifier: AGPL-3.0-only
"""The measurement of a person's own machine."""

import json
from pathlib import Path

from demo.__main__ import environment as demo_environment
from mt_photos_ml.engine import benchmark
from mt_photos_ml.photo import Photo
from service import run_command


def test_the_photo_is_as_large_as_one_of_a_phone() -> None:
    data = benchmark.make_photo()
    photo = Photo.open(data)
    assert (photo.width, photo.height) == (4000, 3000)
    assert 800_000 < len(data) < 8_000_000


def test_every_task_is_measured_and_what_would_help_is_told(cache: Path) -> None:
    ended = run_command({**demo_environment(cache), "PREPARE_MODELS": "false"}, "bench", "--json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert [task["task"] for task in told["tasks"]] == ["ocr", "clip", "faces"]
    assert all(task["per_day"] * task["milliseconds"] > 0.2 * 86_400_000 for task in told["tasks"])
    assert {hint["code"] for hint in told["hints"]} == {"int8", "prepare"}


def test_a_model_that_is_not_there_is_named_and_not_downloaded(tmp_path: Path) -> None:
    settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path), "TASKS": "clip", "HF_ENDPOINT": "http://127.0.0.1:9"}
    ended = run_command(settings, "bench")
    assert ended.returncode == 1
    assert "models pull" in ended.stdout
    assert "127.0.0.1:9" not in ended.stderr
