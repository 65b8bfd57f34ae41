# SPDX-License-Identifier: AGPL-3.0-only
"""Sessions of onnxruntime: which errors speak of the file, and memory that comes back."""

import subprocess
import sys
from pathlib import Path

import pytest

from demo.models import build_clip
from mt_photos_ml.models.catalog import OCR, ModelRef
from mt_photos_ml.models.sources import file_in_wheel
from mt_photos_ml.runtime import ModelDamaged
from mt_photos_ml.runtime.ort import OrtRuntime


@pytest.mark.parametrize("harm", ["half", "empty", "gone"])
def test_a_file_that_is_no_model_is_said_to_be_damaged(tmp_path: Path, harm: str) -> None:
    build_clip(tmp_path)
    model = tmp_path / "visual" / "model.onnx"
    OrtRuntime(1).open(model)
    content = model.read_bytes()
    model.unlink()
    if harm != "gone":
        model.write_bytes(content[: len(content) // 2] if harm == "half" else b"")
    with pytest.raises(ModelDamaged, match=r"model\.onnx"):
        OrtRuntime(1).open(model)


def test_the_runtime_says_what_it_is() -> None:
    assert OrtRuntime().describe().endswith(" on CPU")


def test_what_a_large_run_needed_comes_back_when_the_model_is_dropped(tmp_path: Path) -> None:
    """In a process of its own: in this one other tests' sessions live."""
    script = """
import gc, numpy, pathlib, sys
from mt_photos_ml.machine import memory
from mt_photos_ml.runtime.ort import OrtRuntime
def anonymous():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) // 1024
runtime = OrtRuntime(1)
session = runtime.open(pathlib.Path(sys.argv[1]))
before = anonymous()
session.run({session.inputs[0].name: numpy.zeros((1, 3, 736, 992), "f4")})
used = anonymous()
del session
runtime.trim_memory()
memory.trim_memory()
assert used > before + 50 and anonymous() < before + 20, (before, used, anonymous())
"""
    carried = file_in_wheel(ModelRef(OCR, "PP-OCRv6_small", "detection"))
    subprocess.run([sys.executable, "-c", script, str(carried)], check=True, timeout=60)
