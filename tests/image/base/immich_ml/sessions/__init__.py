# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in for an NPU session: runs the model with onnxruntime, because its file is an onnx file renamed."""

from pathlib import Path
from typing import Any

import onnxruntime


class NpuSession:
    def __init__(self, model_path: Path) -> None:
        self.session = onnxruntime.InferenceSession(model_path.read_bytes())

    def get_inputs(self) -> list[Any]:
        return self.session.get_inputs()

    def run(self, output_names: list[str] | None, input_feed: dict[str, Any]) -> list[Any]:
        return self.session.run(output_names, input_feed)
