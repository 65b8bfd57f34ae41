# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's names of v3.3: what a request asks for, run over the models that it names."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image

from .config import clean_name
from .models import KINDS
from .models.base import InferenceModel
from .schemas import ModelTask, ModelType


class Identity(NamedTuple):
    name: str
    type: ModelType
    task: ModelTask


class Models:
    """The models that are loaded."""

    def __init__(self) -> None:
        self._loaded: dict[Identity, InferenceModel] = {}

    async def open(self, identity: Identity) -> InferenceModel:
        if identity not in self._loaded:
            kind = KINDS.get((identity.task, identity.type))
            if kind is None:
                raise ValueError(f"Unknown model: {identity}")
            model = kind(clean_name(identity.name))
            await in_thread(model.load)
            self._loaded[identity] = model
        return self._loaded[identity]

    def clear(self) -> None:
        self._loaded.clear()


async def in_thread[**P, T](work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.to_thread(work, *args, **kwargs)


async def run(models: Models, payload: Image.Image | str, asked: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the last type of each task says, and the picture's size. Raises ValueError, KeyError."""
    response: dict[str, Any] = {}
    for task, types in asked.items():
        outputs: dict[ModelType, Any] = {}
        for type_ in sorted(map(ModelType, types)):  # detection before recognition
            model = await models.open(Identity(types[type_]["modelName"], type_, ModelTask(task)))
            inputs = [outputs[needed] for needed in model.depends]
            outputs[type_] = response[task] = await in_thread(
                model.predict, payload, *inputs, **types[type_].get("options", {})
            )
    if isinstance(payload, Image.Image):
        response |= {"imageHeight": payload.height, "imageWidth": payload.width}
    return response
