# SPDX-License-Identifier: AGPL-3.0-only
"""A processor that lacks what the libraries need: told before they are imported, by an emulator of an old one."""

import platform
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest

from service import environment

EMULATOR = shutil.which("qemu-x86_64-static")
needs_emulator = pytest.mark.skipif(
    EMULATOR is None or platform.machine() != "x86_64" or version("numpy") < "2.4",
    reason="no qemu-user-static, or a numpy that any x86-64 runs",
)


def started(processor: str, *command: str) -> subprocess.CompletedProcess[str]:
    assert EMULATOR
    # OpenBLAS takes the emulated processor for another
    given = environment({"OPENBLAS_CORETYPE": "Nehalem", "API_AUTH_KEY": "mine"})
    line = [EMULATOR, "-cpu", processor, sys.executable, "-m", "mt_photos_ml", *command]
    return subprocess.run(line, env=given, capture_output=True, text=True, timeout=120)


@needs_emulator
@pytest.mark.parametrize("command", [("models", "list"), ("doctor",), ("serve",)])
def test_an_old_processor_is_told_what_it_lacks_and_what_to_do(command: tuple[str, ...]) -> None:
    ended = started("qemu64", *command)
    assert ended.returncode == 4
    assert len(ended.stderr.splitlines()) == 1
    for words in ("no SSSE3, SSE4.1, SSE4.2, POPCNT", "x86-64-v2", "`host`", "'numpy<2.4'"):
        assert words in ended.stderr


@needs_emulator
def test_a_processor_that_has_it_is_let_on() -> None:
    ended = started("qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt", "models", "list")
    assert ended.returncode == 0, ended.stderr
    assert "buffalo_l" in ended.stdout
