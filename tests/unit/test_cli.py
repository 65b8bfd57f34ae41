# SPDX-License-Identifier: AGPL-3.0-only
"""The commands `models` and `doctor`; test_serve.py tests `serve`."""

from functools import partial
from pathlib import Path

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from service import run_command


def test_models_lists_pulls_verifies_and_prunes_the_cache(tmp_path: Path) -> None:
    folder = build(tmp_path / "cache")
    (folder / "clip" / "old" / "visual").mkdir(parents=True)
    outdated = folder / "clip" / "demo-colours" / "visual" / "prepared" / "0123456789abcdef"
    outdated.mkdir(parents=True)

    run = partial(run_command, demo_environment(folder))
    assert "in use" in run("models", "list").stdout
    assert run("models", "pull").returncode == 0
    assert (folder / "ocr" / "PP-OCRv6_small" / "recognition" / "model.onnx").is_file()
    verified = run("models", "verify")
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.count(": fine") == 2  # OCR's two models
    assert verified.stdout.count(": it loads (no checksum is known)") == 4
    (int8 := folder / "clip" / "demo-colours" / "visual" / "int8").mkdir()
    (int8 / "model.onnx").write_bytes(b"half")
    ended = run_command({**demo_environment(folder), "INT8_TASKS": "clip"}, "models", "verify")
    assert ended.returncode == 1, ended.stdout
    (folder / "ocr" / "PP-OCRv6_small" / "detection" / "model.onnx").write_bytes(b"half")
    assert run("models", "verify").returncode == 1
    assert "clip/old" in run("models", "prune", answer="n\n").stdout
    assert (folder / "clip" / "old").exists()
    assert run("models", "prune", answer="y\n").returncode == 0
    assert not (folder / "clip" / "old").exists()
    assert not outdated.exists()
    assert (folder / "clip" / "demo-colours").exists()


def test_the_doctor_has_a_line_for_each_check_and_an_exit_code(cache: Path, tmp_path: Path) -> None:
    well = run_command(
        {**demo_environment(cache), "API_AUTH_KEY": "own", "HF_ENDPOINT": "http://127.0.0.1:9"}, "doctor"
    )
    assert well.returncode == 0, well.stdout
    for what in ("settings", "key", "decoder: JPEG", "runtime: onnxruntime", "cache", "model", "endpoint"):
        assert what in well.stdout
    file = tmp_path / "file"
    file.touch()
    ill = run_command(
        {"MACHINE_LEARNING_CACHE_FOLDER": str(file / "cache"), "OCR_MODEL_NAME": "nothing", "CLIP_DEVICE": "cuda"},
        "doctor",
    )
    assert ill.returncode == 1
    assert "FAIL  cache" in ill.stdout
    assert "FAIL  settings: OCR_MODEL_NAME=nothing" in ill.stdout
    assert "ok    device: clip/XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k/visual runs on CPU" in ill.stdout
    assert "warn  device: CUDA: this build of onnxruntime does not support it" in ill.stdout
