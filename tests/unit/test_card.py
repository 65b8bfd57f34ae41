# SPDX-License-Identifier: AGPL-3.0-only
"""Nvidia cards: their memory, their driver, and why one can't be used. A C compiler builds stand-ins for the driver's
library and for onnxruntime's CUDA library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from mt_photos_ml.machine import card

NVML = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } Memory;
#ifndef DRIVER
#define DRIVER '1'
#endif
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned number, void **handle) { *handle = (void *)(long)number; return number > 1; }
int nvmlSystemGetDriverVersion(char *version, unsigned size) { version[0] = DRIVER; version[1] = 0; return 0; }
int nvmlDeviceGetMemoryInfo(void *card, Memory *memory) { memory->used = (1000 + (long)card) * 1000000; return 0; }
int nvmlDeviceGetName(void *card, char *name, unsigned length) {
    strncpy(name, card ? "RTX 3060" : "RTX 5060 Ti", length); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *card, int *major, int *minor) {
    *major = card ? 8 : 12; *minor = card ? 6 : 0; return 0; }
"""
CODE = """
.section .nv_fatbin,"a"
.long 0xBA55ED50
.short 1, 16
.quad 3 * (32 + 8)
.irp capability, 75, 86, 90
.short 2, 1
.long 32
.quad 8
.zero 12
.long \\capability
.quad 0
.endr
"""
"""Code for three kinds of card, as the CUDA compiler lays it out."""
DOCTOR = """
import os, sys
import onnxruntime
onnxruntime.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
onnxruntime.cuda_version, onnxruntime.__file__ = "12.2", os.environ["LIBRARIES"] + "/onnxruntime/__init__.py"
from mt_photos_ml.cli import main
sys.argv = ["mt-photos-ml", "doctor"]
main()
"""
BUILT = f"onnxruntime {onnxruntime.__version__} is built with CUDA 12.2 and has code for 7.5, 8.6, 9.0"
DISTRUST = """
from pathlib import Path
from mt_photos_ml.runtime.devices import Devices
(devices := Devices()).distrust(Path("/cache/ocr/any/detection/model.onnx"), "CUDA", "no kernel image")
print(devices.distrusted["ocr"])
"""
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both libraries."""
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "onnxruntime" / "capi").mkdir(parents=True)
    for name, kind, source in (
        ("libnvidia-ml.so.1", "c", NVML),
        ("onnxruntime/capi/libonnxruntime_providers_cuda.so", "assembler", CODE),
    ):
        command = ["cc", "-shared", "-fPIC", "-nostartfiles", "-o", str(folder / name), "-x", kind, "-"]
        subprocess.run(command, input=source, text=True, check=True)
    return folder


def run(libraries: Path, program: str, **settings: str) -> str:
    environment = {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(Path(card.__file__).parents[2])}
    given = {**os.environ, **environment, "LIBRARIES": str(libraries), **settings}
    ended = subprocess.run([sys.executable, "-c", program], env=given, capture_output=True, text=True, check=False)
    return ended.stdout


def test_the_used_memory_of_a_card_is_what_its_driver_reports(libraries: Path) -> None:
    program = "from mt_photos_ml.machine.card import used_mb; print(used_mb(0), used_mb(1), used_mb(2))"
    assert run(libraries, program).split() == ["1000", "1001", "None"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("0", f"(the card is RTX 5060 Ti, of compute capability 12.0; {BUILT}, none made for this card)"),
        ("1", f"(the card is RTX 3060, of compute capability 8.6; {BUILT})"),
        ("2", "(in Docker, pass --gpus all; without Docker, install Nvidia's driver)"),
    ],
)
def test_a_card_that_fails_is_named_with_what_onnxruntime_has_code_for(
    number: str, said: str, libraries: Path, tmp_path: Path
) -> None:
    settings = {"MACHINE_LEARNING_DEVICE_ID": number, "MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path)}
    (line,) = [line for line in run(libraries, DOCTOR, **settings).splitlines() if "device: CUDA" in line]
    assert line.endswith(said)


def test_a_card_that_fails_during_a_request_is_named_too(libraries: Path) -> None:
    assert "no kernel image (the card is RTX 5060 Ti, of compute capability 12.0; " in run(libraries, DISTRUST)


def test_the_key_changes_with_the_driver_and_the_card(libraries: Path, tmp_path: Path) -> None:
    program = "from mt_photos_ml.machine.card import driver_key; print(*map(driver_key, (0, 0, 1, 2)))"
    one, again, other_card, none = run(libraries, program).split()
    library = ["cc", "-shared", "-fPIC", "-DDRIVER='2'", "-o", str(tmp_path / "libnvidia-ml.so.1"), "-x", "c", "-"]
    subprocess.run(library, input=NVML, text=True, check=True)
    assert one == again
    assert len({one, other_card, none, run(tmp_path, program).split()[0]}) == 4


@pytest.mark.parametrize(
    "file",
    ["proc/driver/nvidia/version", "sys/class/drm/renderD128/device/uevent", "sys/class/accel/accel0/device/uevent"],
)
def test_the_key_changes_with_the_kernels_files_about_cards_and_drivers(file: str, tmp_path: Path) -> None:
    keys = {card.driver_key(0, tmp_path)}
    (path := tmp_path / file).parent.mkdir(parents=True)
    for text in ("one", "other"):
        path.write_text(text)
        keys.add(card.driver_key(0, tmp_path))
    assert len(keys) == 3


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a card")
def test_without_a_card_no_memory_is_reported() -> None:
    assert card.used_mb(0) is None
    assert card.about(0) is None
