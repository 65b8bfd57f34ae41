# SPDX-License-Identifier: AGPL-3.0-only
"""The memory of a graphics card. The driver's library is stood in for by one that a C compiler makes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mt_photos_ml.machine import card

NVML = """
typedef struct { unsigned long long total, free, used; } Memory;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned number, void **handle) { *handle = (void *)(long)number; return number > 1; }
int nvmlDeviceGetMemoryInfo(void *card, Memory *memory) { memory->used = (1000 + (long)card) * 1000000; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
def test_the_memory_of_a_card_is_what_the_driver_says(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    program = "from mt_photos_ml.machine.card import used_mb; print(used_mb(0), used_mb(1), used_mb(2))"
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(Path(card.__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["1000", "1001", "None"]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a card")
def test_without_a_card_there_is_none() -> None:
    assert card.used_mb(0) is None
