# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: the two encoders of CLIP. They answer with the vector as JSON text."""

import json
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tokenizers import Tokenizer

from ..schemas import ModelTask, ModelType
from ..sessions.ort import OrtSession
from .base import InferenceModel


class VisualEncoder(InferenceModel):
    model_task, model_type = ModelTask.SEARCH, ModelType.VISUAL

    def _load(self) -> OrtSession:
        self.preprocess = json.loads((self.model_dir / "preprocess_cfg.json").read_bytes())
        return super()._load()

    def predict(self, payload: Any, *outputs: Any, **options: Any) -> str:
        size = self.preprocess["size"]
        side = size if isinstance(size, int) else size[0]
        square = ImageOps.fit(payload.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
        pixels = (np.asarray(square, np.float32) / 255 - self.preprocess["mean"]) / self.preprocess["std"]
        (vector,) = self.session.run(None, {"image": pixels.transpose(2, 0, 1)[None].astype(np.float32)})
        return json.dumps(vector[0].tolist())


class TextualEncoder(InferenceModel):
    model_task, model_type = ModelTask.SEARCH, ModelType.TEXTUAL

    def _load(self) -> OrtSession:
        config = json.loads((self.cache_dir / "config.json").read_bytes())
        length = config.get("text_cfg", config).get("context_length", 77)
        pad = json.loads((self.model_dir / "tokenizer_config.json").read_bytes())["pad_token"]
        pad = pad if isinstance(pad, str) else pad["content"]
        self.tokenizer = Tokenizer.from_file(str(self.model_dir / "tokenizer.json"))
        self.tokenizer.enable_padding(length=length, pad_token=pad, pad_id=self.tokenizer.token_to_id(pad))
        self.tokenizer.enable_truncation(length)
        return super()._load()

    def predict(self, payload: Any, *outputs: Any, **options: Any) -> str:
        tokens = self.tokenizer.encode(" ".join(payload.split()))
        given = {"text": tokens.ids, "input_ids": tokens.ids, "attention_mask": tokens.attention_mask}
        feed = {node.name: np.array([given[node.name]], np.int32) for node in self.session.get_inputs()}
        (vector,) = self.session.run(None, feed)
        return json.dumps(vector[0].tolist())
