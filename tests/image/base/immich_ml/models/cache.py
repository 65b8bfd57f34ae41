# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: one model a name, type and task, for as long as it is asked for."""

import asyncio
from typing import Any

from ..schemas import ModelTask, ModelType
from . import from_model_type
from .base import InferenceModel


class ModelCache:
    def __init__(self) -> None:
        self._models: dict[tuple[str, str, str], InferenceModel] = {}
        self._ends: dict[tuple[str, str, str], asyncio.TimerHandle] = {}
        self.cache = self  # upstream's is an object of aiocache's, which has this `clear`

    async def clear(self) -> None:
        self._models.clear()
        while self._ends:
            self._ends.popitem()[1].cancel()

    async def get(
        self, model_name: str, model_type: ModelType, model_task: ModelTask, ttl: int | None = None, **model_kwargs: Any
    ) -> InferenceModel:
        """ttl: seconds without a further call after which the model goes; one got without stays. Raises ValueError for
        a name that is not known."""
        key = (model_name, model_type, model_task)
        new = key not in self._models
        if new:
            self._models[key] = from_model_type(model_name, model_type, model_task, **model_kwargs)
        if ttl and (new or key in self._ends):
            if key in self._ends:
                self._ends[key].cancel()
            self._ends[key] = asyncio.get_running_loop().call_later(ttl, self._drop, key)
        return self._models[key]

    def _drop(self, key: tuple[str, str, str]) -> None:
        del self._models[key], self._ends[key]
