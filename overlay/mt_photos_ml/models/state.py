# SPDX-License-Identifier: AGPL-3.0-only
"""What a person is told of a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelState:
    """name: "ready", "in use", "downloading", "loading", "failed" or "not loaded". idle: seconds."""

    name: str
    idle: float | None = None
    memory_mb: float | None = None
    error: str | None = None
