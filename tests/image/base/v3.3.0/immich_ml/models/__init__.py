# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's names of v3.3: the classes of models by task and type."""

from .base import InferenceModel
from .clip import TextualEncoder, VisualEncoder
from .stages import FaceDetector, FaceRecognizer, TextDetector, TextRecognizer

KINDS: dict[tuple[str, str], type[InferenceModel]] = {
    (kind.model_task, kind.model_type): kind
    for kind in (VisualEncoder, TextualEncoder, FaceDetector, FaceRecognizer, TextDetector, TextRecognizer)
}
