# SPDX-License-Identifier: AGPL-3.0-only
"""Runs models on devices. A device plans a model for each shape of its inputs: it opens a session for this shape and
chooses or compiles its kernels, which takes a second to minutes. That happens in the background; the processor answers
until then, and if the device is wrong, slow or gone."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from numpy.typing import NDArray

from ..machine import background
from . import Node, PlainSession, Runtime, Session, Tensors
from .devices import Device, Devices, group_of
from .example import Shapes, cosine, example, shapes_like, shapes_of
from .prepared.fingerprint import cache_key
from .times import Times, read_times, write_times

log = logging.getLogger("mt_photos_ml")

_AT_ONCE = 2  # inferences on a device
_WORTH = 0.9  # a device that the settings don't name may take at most this share of the processor's time
_WORTH_IF_PADDED = 0.7  # padding takes about a fifth more
_RUNS = 3  # the quickest counts
_RETRY_SECONDS, _MAX_RETRY_SECONDS = 300.0, 3600.0  # until a device that failed is retried


@dataclass(frozen=True)
class Plans:
    """How many shapes of a model are planned on its device, and how many are not yet."""

    device: str
    ready: int
    waiting: int
    times: Times | None


class WrongAnswer(RuntimeError):
    """A device's answers differ from the processor's."""


class ShapedRuntime:
    """Runs models on their device. Plans one shape at a time."""

    def __init__(self, devices: Devices, processor: Runtime, retry_seconds: float = _RETRY_SECONDS) -> None:
        """retry_seconds: until a device that failed is retried; doubled after each failure."""
        self._devices, self._processor, self._retry_seconds = devices, processor, retry_seconds
        self._sessions = WeakValueDictionary[Path, ShapedSession]()
        self._on_processor = set[Path]()  # models opened there because their device is slower
        self._planning, self._turns = threading.Lock(), threading.Semaphore(_AT_ONCE)
        self._pauses = dict[str, float]()  # by group: seconds until the next retry

    def runs_on(self, model: Path) -> str:
        if session := self._sessions.get(model):
            return session.device.name if session.few_shapes else self._processor.runs_on(model)
        is_used = model not in self._on_processor and self._devices.is_trusted(model)
        device = self._device(model) if is_used else None
        return device.name if device else self._processor.runs_on(model)

    def open(self, model: Path) -> Session:
        session, device = self._processor.open(model), self._device(model)
        if device is None:
            self._on_processor.add(model)
            return session
        self._on_processor.discard(model)
        self._devices.holds_memory |= device.is_card
        give_up = partial(self._give_up, model, device)
        shaped = ShapedSession(model, device, session, self._devices, self._planning, self._turns, give_up)
        if (before := self._sessions.get(model)) and before.key == shaped.key:
            shaped.ready = before.ready  # reopened because the processor's session changed
        self._sessions[model] = shaped
        return shaped

    def plan(self, model: Path) -> None:
        """Plans the declared shapes of an open model, one after the other."""
        if session := self._sessions.get(model):
            for shapes in session.declared:
                session.plan(shapes)

    def plans(self, model: Path) -> Plans | None:
        """The plans of a model; None if it is not open, or not on a device."""
        session = self._sessions.get(model)
        if session is None or not session.few_shapes:
            return None
        ready = len(session.ready)
        return Plans(session.device.name, ready, len(session.declared) - ready, read_times(model, session.device))

    def _give_up(self, model: Path, device: Device, error: Exception) -> None:
        """Moves the group to the processor and schedules a retry, unless the device's answer was wrong."""
        group, reason = group_of(model), " ".join(str(error).split())[:300]
        pause = self._pauses.get(group, self._retry_seconds)
        again = "" if isinstance(error, WrongAnswer) else f" (retry in {pause / 60:.0f} minutes)"
        if self._devices.distrust(model, device.name, reason + again) and again:
            self._pauses[group] = min(2 * pause, _MAX_RETRY_SECONDS)
            background.run(lambda: self._try_again(group, pause))

    def _try_again(self, group: str, seconds: float) -> None:
        time.sleep(seconds)
        for opened in self._sessions.valuerefs():
            if (session := opened()) and not session.few_shapes:
                session.forget()  # so that each shape is planned and compared again
        self._devices.distrusted.pop(group, None)

    def _device(self, model: Path) -> Device | None:
        """The device to run a model on, even if it is distrusted now; None if the processor was faster."""
        device = self._devices.chosen_for(model)
        times = read_times(model, device) if device and self._devices.is_measured(model) else None
        return None if times and not times.is_worth_it else device


class ShapedSession:
    """A model on a device and on the processor. ready: planned sessions, by shape. key: of the model's files."""

    def __init__(
        self,
        model: Path,
        device: Device,
        processor: Session,
        devices: Devices,
        planning: threading.Lock,
        turns: threading.Semaphore,
        give_up: Callable[[Exception], None],
    ) -> None:
        self.inputs, self.outputs, self.metadata = processor.inputs, processor.outputs, processor.metadata
        self.cores = processor.cores
        self.declared, self.ready = tuple[Shapes, ...](), dict[Shapes, Session]()
        self._asked = set[Shapes]()
        self._model, self.device, self._processor, self._devices = model, device, processor, devices
        self.key = cache_key(model)
        self._planning, self._turns = planning, turns
        self._give_up, self._is_slow = give_up, False

    @property
    def few_shapes(self) -> bool:
        """Whether the device is used."""
        return not self._is_slow and self._devices.is_trusted(self._model)

    def declare(self, shapes: Sequence[Sequence[int]]) -> None:
        self.declared = tuple(shapes_like(self.inputs, shape) for shape in shapes)

    def choose(self, feed: Tensors, is_busy: bool) -> Session:
        shapes = shapes_of(feed)
        if self.few_shapes and (session := self.ready.get(shapes)):
            return session
        if self.few_shapes and shapes in self.declared and shapes not in self._asked:
            self._asked.add(shapes)
            background.run(lambda: self.plan(shapes))
        return self._processor.choose(feed, is_busy)

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        return self.choose(feed, False).run(feed)

    def plan(self, shapes: Shapes) -> None:
        """Opens a session for these shapes, and uses it if its answers match the processor's."""
        with self._planning:
            if shapes in self.ready or not self.few_shapes:
                return
            try:
                self._plan(shapes)
            except Exception as error:  # onnxruntime exports no error classes
                if self._has_its_files():
                    self.give_up(error)

    def _has_its_files(self) -> bool:
        """False if the model's files were replaced or removed since it was opened: then the device did not fail."""
        with suppress(OSError):
            return cache_key(self._model) == self.key
        return False

    def _plan(self, shapes: Shapes) -> None:
        started, feed = time.perf_counter(), example(shapes)
        session = self.device.open(self._model, _free_axes(self.inputs, shapes))
        found = session.run(feed)
        took = time.perf_counter() - started
        expected = self._processor.run(feed)
        if (likeness := min(map(cosine, found, expected))) < self.device.min_cosine(self._model):
            raise WrongAnswer(f"its answers differ from the processor's (cosine {likeness:.4f})")
        if not self.ready and read_times(self._model, self.device) is None:
            device_ms, processor_ms = _milliseconds(session, feed), _milliseconds(self._processor, feed)
            times = Times(device_ms, processor_ms, device_ms <= self._worth * processor_ms)
            write_times(self._model, self.device, times)
            self._is_slow = self._devices.is_measured(self._model) and not times.is_worth_it
            if self._is_slow:
                log.info("%s is not faster than the processor for %s and is not used", self.device.name, self._name)
                return
        self.ready[shapes] = _OnDevice(session, self.device.threads, self._turns, self)
        log.info("planned %s for %s in %.1f s", self._name, self.device.name, took)

    def give_up(self, error: Exception) -> None:
        """Moves the model's group to the processor."""
        self._give_up(error)
        self.ready.clear()

    def forget(self) -> None:
        """Drops the planned sessions."""
        self.ready.clear()
        self._asked.clear()

    @property
    def _worth(self) -> float:
        return _WORTH_IF_PADDED if len(self.declared) > 1 else _WORTH

    @property
    def _name(self) -> str:
        return "/".join(self._model.parts[-4:-1])


class _OnDevice(PlainSession):
    """A session of a model for one shape."""

    def __init__(self, session: Session, cores: int, turns: threading.Semaphore, model: ShapedSession) -> None:
        self.inputs, self.outputs, self.metadata = session.inputs, session.outputs, session.metadata
        self._session, self.cores, self._turns, self._model = session, cores, turns, model

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        with self._turns:
            if not self._model.few_shapes:  # the device failed while this call waited
                return self._model.run(feed)
            try:
                return self._session.run(feed)
            except Exception as error:
                self._model.give_up(error)
                raise


def _free_axes(inputs: Sequence[Node], shapes: Shapes) -> dict[str, int]:
    """The lengths of named axes, without a name that axes of different lengths share, such as "?"."""
    given = {name: shape for name, _, shape in shapes}
    axes = {pair for node in inputs for pair in zip(node.shape, given[node.name], strict=True)}
    names = [axis for axis, _ in axes]
    return {axis: length for axis, length in axes if isinstance(axis, str) and names.count(axis) == 1}


def _milliseconds(session: Session, feed: Tensors) -> float:
    """The time of the quickest of several runs."""

    def run() -> float:
        started = time.perf_counter()
        session.run(feed)
        return (time.perf_counter() - started) * 1000

    return min(run() for _ in range(_RUNS))
