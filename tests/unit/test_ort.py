# SPDX-License-Identifier: AGPL-3.0-only
"""Sessions of onnxruntime: which of its errors mean that the file is damaged."""

from pathlib import Path

import numpy as np
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


def test_a_missing_file_of_weights_is_damage_too(tmp_path: Path) -> None:
    import onnx

    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    OrtRuntime(1).open(path)
    (tmp_path / "weights").unlink()
    with pytest.raises(ModelDamaged, match="weights"):
        OrtRuntime(1).open(path)
