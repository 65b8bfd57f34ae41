# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: the models that it knows, and what each is opened as."""

from typing import Any

from ..config import clean_name
from ..schemas import ModelTask, ModelType
from .base import InferenceModel
from .clip import TextualEncoder, VisualEncoder
from .stages import FaceDetector, FaceRecognizer, TextDetector, TextRecognizer

_KNOWN = {
    ModelTask.SEARCH: {
        "ViT-B-32__openai",
        "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k",
        "XLM-Roberta-Large-Vit-B-32",
        "nllb-clip-base-siglip__v1",
    },
    ModelTask.FACIAL_RECOGNITION: {"antelopev2", "buffalo_l", "buffalo_m", "buffalo_s"},
    ModelTask.OCR: {"PP-OCRv5_mobile", "PP-OCRv5_server"},
}
_KINDS: dict[tuple[str, str], type[InferenceModel]] = {
    (kind.model_task, kind.model_type): kind
    for kind in (VisualEncoder, TextualEncoder, FaceDetector, FaceRecognizer, TextDetector, TextRecognizer)
}


def from_model_type(
    model_name: str, model_type: ModelType, model_task: ModelTask, **model_kwargs: Any
) -> InferenceModel:
    """The model, not loaded yet. Raises ValueError for a name, or a pair of type and task, that is not known."""
    kind = _KINDS.get((model_task, model_type))
    if kind is None or clean_name(model_name) not in _KNOWN[kind.model_task]:
        raise ValueError(f"Unknown model: {model_name} ({model_task}, {model_type})")
    return kind(model_name, **model_kwargs)
