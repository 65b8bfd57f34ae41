# SPDX-License-Identifier: AGPL-3.0-only
"""Sessions of onnxruntime: which of its errors mean that the file is damaged."""

from pathlib import Path

import pytest

from demo.models import build_clip
from mt_photos_ml.runtime import ModelDamaged
from mt_photos_ml.runtime.ort import OrtRuntime


@pytest.mark.parametrize("harm", ["half", "empty", "gone"])
def test_a_file_that_is_not_a_model_is_damaged(tmp_path: Path, harm: str) -> None:
    build_clip(tmp_path)
    model = tmp_path / "visual" / "model.onnx"
    OrtRuntime(1).open(model)
    content = model.read_bytes()
    model.unlink()
    if harm != "gone":
        model.write_bytes(content[: len(content) // 2] if harm == "half" else b"")
    with pytest.raises(ModelDamaged, match=r"model\.onnx"):
        OrtRuntime(1).open(model)
