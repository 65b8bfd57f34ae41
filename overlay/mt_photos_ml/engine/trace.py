# SPDX-License-Identifier: AGPL-3.0-only
"""The facts about a request's work: the photo, and the time of each step."""

from dataclasses import dataclass, field
from time import perf_counter


@dataclass(kw_only=True)
class Trace:
    """The work for one request. started: by perf_counter(), in seconds. photo: its kind and size. All others are None
    until known.

    waited_ms: until a worker began, including the upload and loading of models. decode_ms, model_ms: in the worker.
    """

    started: float = field(default_factory=perf_counter)
    photo: str | None = None
    megabytes: float | None = None
    waited_ms: float | None = None
    decode_ms: float | None = None
    model_ms: float | None = None
    note: str | None = None

    def elapsed_ms(self) -> float:
        """Milliseconds since it started."""
        return (perf_counter() - self.started) * 1000
