# SPDX-License-Identifier: AGPL-3.0-only
"""The doctor: a line for each check."""

from pathlib import Path

from demo.__main__ import environment as demo_environment
from service import run_command


def test_the_doctor_has_a_line_for_each_check_and_an_exit_code(cache: Path, tmp_path: Path) -> None:
    well = run_command(
        {**demo_environment(cache), "API_AUTH_KEY": "own", "HF_ENDPOINT": "http://127.0.0.1:9"}, "doctor"
    )
    assert well.returncode == 0, well.stdout
    for what in ("settings", "key", "decoder: JPEG", "runtime: onnxruntime", "cache", "model", "endpoint"):
        assert what in well.stdout
    file = tmp_path / "file"
    file.touch()
    ill = run_command({"MACHINE_LEARNING_CACHE_FOLDER": str(file / "cache"), "OCR_MODEL_NAME": "nothing"}, "doctor")
    assert ill.returncode == 1
    assert "FAIL  cache" in ill.stdout
    assert "FAIL  settings: OCR_MODEL_NAME=nothing" in ill.stdout
