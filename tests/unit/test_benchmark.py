# SPDX-License-Identifier: AGPL-3.0-only
"""`mt-photos-ml bench` and /api/bench, which measure the user's machine."""

import json
from pathlib import Path

from demo.__main__ import environment as demo_environment
from service import run_command, running


def test_every_task_is_measured_and_hints_say_what_would_help(cache: Path, tmp_path: Path) -> None:
    settings = {**demo_environment(cache), "PREPARE_MODELS": "false"}
    ended = run_command({**settings, "TASKS": "ocr,clip"}, "bench", "--json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert [task["task"] for task in told["tasks"]] == ["ocr", "clip"]
    assert all(task["per_day"] * task["milliseconds"] > 0.2 * 86_400_000 for task in told["tasks"])
    assert {hint["code"] for hint in told["hints"]} == {"int8", "prepare"}
    with running(tmp_path, {**settings, "TASKS": "faces"}) as service, service.client() as client:
        report = client.post("/api/bench").json()["result"]
    assert [task["task"] for task in report["tasks"]] == ["faces"]
    assert (report.keys(), report["device"]) == (told.keys(), told["device"])


def test_a_missing_model_is_named_and_not_downloaded(tmp_path: Path) -> None:
    settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path), "TASKS": "clip", "HF_ENDPOINT": "http://127.0.0.1:9"}
    ended = run_command(settings, "bench")
    assert (ended.returncode, "models pull" in ended.stdout, "127.0.0.1:9" in ended.stderr) == (1, True, False)
