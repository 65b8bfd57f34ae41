# SPDX-License-Identifier: AGPL-3.0-only
"""A loaded model in the store, and the state of a model as users see it."""

import time
from dataclasses import dataclass, field
from typing import Generic

from .loader import Loaded, ModelKey, T


@dataclass(frozen=True)
class ModelState:
    """name: "ready", "in use", "downloading", "loading", "failed" or "not loaded". idle: seconds."""

    name: str
    idle: float | None = None
    memory_mb: float | None = None
    error: str | None = None


@dataclass
class Entry(Generic[T]):
    """A loaded model. since, idle_since: by time.monotonic(). is_settled: whether its prepared form was tried."""

    key: ModelKey[T]
    loaded: Loaded[T]
    users: int = 0
    since: float = field(default_factory=time.monotonic)
    idle_since: float = field(default_factory=time.monotonic)
    is_settled: bool = False
