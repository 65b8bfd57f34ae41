# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: a session on Mali by ARM NN. There is none, so the file of the model is an
onnx file under the other name, and onnxruntime runs it."""

from pathlib import Path

from ..ort import OrtSession


class AnnSession(OrtSession):
    def __init__(self, model_path: Path) -> None:
        super().__init__(model_path)
