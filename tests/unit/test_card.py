# SPDX-License-Identifier: AGPL-3.0-only
"""A graphics card's memory, and what tells its driver from another. Its library is one that a C compiler made."""

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
int nvmlDeviceGetName(void *card, char *name, unsigned size) { name[0] = 'A' + (long)card; name[1] = 0; return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned size) { version[0] = DRIVER; version[1] = 0; return 0; }
int nvmlDeviceGetMemoryInfo(void *card, Memory *memory) { memory->used = (1000 + (long)card) * 1000000; return 0; }
"""


def said(folder: Path, program: str, driver: str = "1") -> list[str]:
    """What a program prints of the card, by the library in this folder. driver: its version."""
    (folder / "nvml.c").write_text(NVML)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", f"-DDRIVER='{driver}'", "-o", library, folder / "nvml.c"], check=True)
    environment = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(Path(card.__file__).parents[2])}
    command = [sys.executable, "-c", f"from mt_photos_ml.machine.card import *; {program}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
def test_the_memory_of_a_card_is_what_the_driver_says(tmp_path: Path) -> None:
    assert said(tmp_path, "print(used_mb(0), used_mb(1), used_mb(2))") == ["1000", "1001", "None"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
def test_another_driver_or_another_card_has_another_key(tmp_path: Path) -> None:
    program = "print(driver_key(0), driver_key(0), driver_key(1), driver_key(2))"
    one, again, other_card, none = said(tmp_path, program)
    assert one == again
    assert len({one, other_card, none, said(tmp_path, program, "2")[0]}) == 4


@pytest.mark.parametrize(
    "file",
    ["proc/driver/nvidia/version", "sys/class/drm/renderD128/device/uevent", "sys/class/accel/accel0/device/uevent"],
)
def test_what_the_kernel_says_of_cards_and_drivers_changes_the_key(file: str, tmp_path: Path) -> None:
    keys = {card.driver_key(0, tmp_path)}
    (path := tmp_path / file).parent.mkdir(parents=True)
    for text in ("one", "other"):
        path.write_text(text)
        keys.add(card.driver_key(0, tmp_path))
    assert len(keys) == 3


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a card")
def test_without_a_card_there_is_none() -> None:
    assert card.used_mb(0) is None
