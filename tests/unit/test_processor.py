# SPDX-License-Identifier: AGPL-3.0-only
"""An old processor, emulated: the service says what it lacks before it imports the libraries that need it."""

import platform
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest

from service import environment

EMULATOR = shutil.which("qemu-x86_64-static")


@pytest.mark.skipif(
    EMULATOR is None or platform.machine() != "x86_64" or version("numpy") < "2.4",
    reason="no qemu-user-static, or a numpy that any x86-64 runs",
)
@pytest.mark.parametrize("command", [("models", "list"), ("doctor",), ("serve",)])
def test_on_an_old_processor_one_line_says_what_it_lacks_and_what_to_do(command: tuple[str, ...]) -> None:
    # OpenBLAS misdetects the emulated processor
    given = environment({"OPENBLAS_CORETYPE": "Nehalem", "API_AUTH_KEY": "mine"})
    line = [str(EMULATOR), "-cpu", "qemu64", sys.executable, "-m", "mt_photos_ml", *command]
    ended = subprocess.run(line, env=given, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 4
    assert len(ended.stderr.splitlines()) == 1
    for words in ("no SSSE3, SSE4.1, SSE4.2, POPCNT", "x86-64-v2", "`host`", "'numpy<2.4'"):
        assert words in ended.stderr
