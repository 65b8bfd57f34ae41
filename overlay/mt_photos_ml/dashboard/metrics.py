# SPDX-License-Identifier: AGPL-3.0-only
"""Counts requests, for the page and in Prometheus' text format."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..api.trace import RequestTrace

PHOTO_ROUTES = ("/ocr", "/clip/img", "/represent")
TASK_ROUTES = (*PHOTO_ROUTES, "/clip/txt")
MINUTES = 60
ERRORS = 20
"""How many failed requests are kept, the newest first."""

_STEPS = ("wait", "decode", "model", "total")
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
_COUNTED = (*TASK_ROUTES, "/check", "/restart", "/restart_v2", "/predict")  # all other paths count as one

Sample = tuple[str, Mapping[str, str], float]
"""One sample of a metric: suffix of its name, labels, value."""


@dataclass(frozen=True)
class Failure:
    """A failed request. at: seconds since 1970."""

    at: float
    path: str
    status: int
    message: str


class Metrics:
    """Counts the requests of one process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """clock: seconds since 1970."""
        self._clock = clock
        self.started = clock()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.errors: deque[Failure] = deque(maxlen=ERRORS)
        self._steps: Counter[tuple[str, str]] = Counter()  # milliseconds by route and step
        self._buckets: Counter[tuple[str, str, float]] = Counter()  # by route, step and bucket
        self._done: Counter[str] = Counter()
        self._photos_by_minute: Counter[int] = Counter()

    def observe(self, trace: RequestTrace) -> None:
        """Counts a request once it is answered."""
        path = trace.path if trace.path in _COUNTED else "other"
        self.requests[path, trace.status] += 1
        if trace.reason:
            self.failures[path, trace.reason] += 1
        if trace.error and path != "other":
            self.errors.appendleft(Failure(self._clock(), path, trace.status, trace.error))
        if trace.status != 200 or trace.error or path not in TASK_ROUTES:
            return
        self._done[path] += 1
        steps = (trace.waited_ms, trace.decode_ms, trace.model_ms, trace.total_ms)
        for step, spent in zip(_STEPS, steps, strict=True):
            self._steps[path, step] += round(spent or 0)
            self._buckets.update((path, step, top) for top in _BUCKETS if (spent or 0) <= 1000 * top)
        if path in PHOTO_ROUTES:
            self._photos_by_minute[int(self._clock() / 60)] += 1
            if len(self._photos_by_minute) > MINUTES:
                del self._photos_by_minute[min(self._photos_by_minute)]

    @property
    def photos(self) -> int:
        """Photos answered since the start."""
        return sum(self._done[route] for route in PHOTO_ROUTES)

    def per_minute(self) -> list[int]:
        """Photos in each of the last 60 minutes, the current minute last."""
        now = int(self._clock() / 60)
        return [self._photos_by_minute[minute] for minute in range(now - MINUTES + 1, now + 1)]

    def mean_ms(self) -> dict[str, dict[str, float]]:
        """Mean milliseconds since the start, by route and step, and the number of requests."""
        return {
            route: {
                "count": self._done[route],
                **{step: round(self._steps[route, step] / self._done[route], 1) for step in _STEPS},
            }
            for route in TASK_ROUTES
            if self._done[route]
        }

    def text(self, gauges: Iterable[tuple[str, str, Sequence[Sample]]]) -> str:
        """All metrics in Prometheus' text format. gauges: name, description and samples of current values."""
        families: list[tuple[str, str, str, Sequence[Sample]]] = [
            ("requests_total", "counter", "Requests answered.", [
                ("", {"path": path, "status": str(status)}, n) for (path, status), n in sorted(self.requests.items())
            ]),
            ("errors_total", "counter", "Failed requests, by kind of error.", [
                ("", {"path": path, "reason": reason}, n) for (path, reason), n in sorted(self.failures.items())
            ]),
            ("step_seconds", "histogram", "Duration of each step of answered requests.", list(self._step_samples())),
            *((name, "gauge", told, samples) for name, told, samples in gauges),
        ]  # fmt: skip
        return "".join(line for family in families for line in _family(*family))

    def _step_samples(self) -> Iterator[Sample]:
        for (path, step), spent in sorted(self._steps.items()):
            labels, done = {"path": path, "step": step}, self._done[path]
            for top in _BUCKETS:
                yield "_bucket", {**labels, "le": str(top)}, self._buckets[path, step, top]
            yield "_bucket", {**labels, "le": "+Inf"}, done
            yield "_sum", labels, spent / 1000
            yield "_count", labels, done


def _family(name: str, kind: str, told: str, samples: Sequence[Sample]) -> Iterator[str]:
    """The lines of one metric: https://prometheus.io/docs/instrumenting/exposition_formats/"""
    name = f"mt_photos_ml_{name}"
    yield f"# HELP {name} {told}\n# TYPE {name} {kind}\n"
    for suffix, labels, value in samples:
        said = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"{name}{suffix}{f'{{{said}}}' if said else ''} {value!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
