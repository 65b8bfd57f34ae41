# SPDX-License-Identifier: AGPL-3.0-only
"""The command mt-photos-ml: what it refuses, and what it does with the cache."""

from functools import partial
from pathlib import Path

import pytest

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from service import Service, run_command


def test_a_setting_that_cannot_be_used_stops_the_start_with_one_line() -> None:
    ended = run_command({"OCR_MIN_SCORE": "abc"}, "serve", "--port", 1)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("mt-photos-ml: OCR_MIN_SCORE=abc: expected")


def test_a_port_that_is_taken_is_said_in_words(service: Service) -> None:
    port = service.url.rpartition(":")[2]
    ended = run_command({}, "serve", "--host", "127.0.0.1", "--port", port)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"mt-photos-ml: can't listen on 127.0.0.1 port {port}: ")


@pytest.mark.parametrize("port", ["0", "-1", "99999", "http"])
def test_a_port_that_is_none_is_said_in_words(port: str) -> None:
    ended = run_command({}, "serve", f"--port={port}")
    assert ended.returncode == 2
    assert "expected 1 to 65535" in ended.stderr


def test_the_command_looks_after_the_cache(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    build(folder)
    (folder / "clip" / "old" / "visual").mkdir(parents=True)
    outdated = folder / "clip" / "demo-colours" / "visual" / "prepared" / "0123456789abcdef"
    outdated.mkdir(parents=True)

    run = partial(run_command, demo_environment(folder))
    assert "in use" in run("models", "list").stdout
    assert run("models", "pull").returncode == 0
    assert (folder / "ocr" / "PP-OCRv6_small" / "recognition" / "model.onnx").is_file()
    verified = run("models", "verify")
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.count(": fine") == 2  # the halves of OCR
    assert verified.stdout.count(": it loads (no checksum is known)") == 4
    (folder / "ocr" / "PP-OCRv6_small" / "detection" / "model.onnx").write_bytes(b"half")
    assert run("models", "verify").returncode == 1
    assert "clip/old" in run("models", "prune", answer="n\n").stdout
    assert (folder / "clip" / "old").exists()
    assert run("models", "prune", answer="y\n").returncode == 0
    assert not (folder / "clip" / "old").exists()
    assert not outdated.exists()
    assert (folder / "clip" / "demo-colours").exists()
