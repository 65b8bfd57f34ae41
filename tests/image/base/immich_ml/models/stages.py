# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: detection and recognition of faces and of text. The sessions really run;
the answers are rough counts, where upstream has boxes and words."""

from typing import Any

import cv2
import numpy as np
import onnx
from PIL import Image, ImageOps

from ..schemas import ModelTask, ModelType
from ..sessions.ort import OrtSession
from .base import InferenceModel


def _chw(image: Image.Image, size: tuple[int, int], mean: float, scale: float) -> np.ndarray:
    """[1,3,height,width] float32 of the whole picture, stretched to `size` (width, height)."""
    pixels = np.asarray(image.convert("RGB").resize(size), np.float32)
    return ((pixels - mean) / scale).transpose(2, 0, 1)[None]


class _Stage(InferenceModel):
    def _run(self, array: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {self.session.get_inputs()[0].name: array})


class FaceDetector(_Stage):
    model_task, model_type = ModelTask.FACIAL_RECOGNITION, ModelType.DETECTION

    def predict(self, payload: Any, *outputs: Any, **options: Any) -> dict[str, Any]:
        """How many anchors see a face: several for each."""
        square = ImageOps.pad(payload, (640, 640), centering=(0, 0))
        scores = self._run(_chw(square, square.size, 127.5, 128))[:3]
        return {"detections": sum(int((score >= options.get("minScore", 0.7)).sum()) for score in scores)}


class FaceRecognizer(_Stage):
    model_task, model_type = ModelTask.FACIAL_RECOGNITION, ModelType.RECOGNITION
    depends = (ModelType.DETECTION,)

    def _load(self) -> OrtSession:
        """Any number of crops at once: upstream, too, writes the file anew where its batch is fixed."""
        model = onnx.load(self.model_path)
        batches = [node.type.tensor_type.shape.dim[0] for node in (*model.graph.input, *model.graph.output)]
        if any(batch.HasField("dim_value") for batch in batches):
            for batch in batches:
                batch.dim_param = "batch"
            onnx.save(model, self.model_path)
        return super()._load()

    def predict(self, payload: Any, *outputs: Any, **options: Any) -> dict[str, Any]:
        """The vector of the whole picture, after what detection said."""
        (vectors,) = self._run(_chw(payload, (112, 112), 127.5, 127.5))
        return {**outputs[0], "embedding": vectors[0].tolist()}


class TextDetector(_Stage):
    model_task, model_type = ModelTask.OCR, ModelType.DETECTION

    def predict(self, payload: Any, *outputs: Any, **options: Any) -> dict[str, Any]:
        """How many areas of text there are."""
        (heat,) = self._run(_chw(payload, (736, 736), 127.5, 127.5))
        return {"detections": cv2.connectedComponents((heat[0, 0] > 0.3).astype(np.uint8))[0] - 1}


class TextRecognizer(_Stage):
    model_task, model_type = ModelTask.OCR, ModelType.RECOGNITION
    depends = (ModelType.DETECTION,)

    def predict(self, payload: Any, *outputs: Any, **options: Any) -> dict[str, Any]:
        """How many characters the whole picture has, read as one line, after what detection said."""
        (steps,) = self._run(_chw(payload, (max(48, 48 * payload.width // payload.height), 48), 127.5, 127.5))
        best = steps[0].argmax(1)
        return {**outputs[0], "characters": int(((best != 0) & (np.diff(best, prepend=0) != 0)).sum())}
