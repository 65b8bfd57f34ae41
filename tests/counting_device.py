# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in device for machines without one. It runs on the CPU and records the shapes that each session gets; a test
can make it plan late, answer wrongly, be slow or fail."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mt_photos_ml.runtime import PlainSession, Session, Tensors
from mt_photos_ml.runtime.devices import Device, Devices
from mt_photos_ml.runtime.example import Shapes, shapes_of
from mt_photos_ml.runtime.ort import open_session


@dataclass(frozen=True)
class CountingDevice(Device):
    """The stand-in. sessions: the model of each session and the shapes that it got. lies, breaks: types of models, such
    as "detection", whose answers are wrong or whose inferences fail. may_plan: opening a session waits for it. pause_s:
    seconds added to each inference."""

    name: str = "TestDevice"
    provider: str = "CPUExecutionProvider"
    options: Mapping[str, str] = field(default_factory=dict)
    sessions: list[tuple[str, set[Shapes]]] = field(default_factory=list)
    lies: set[str] = field(default_factory=set)
    breaks: set[str] = field(default_factory=set)
    may_plan: threading.Event = field(default_factory=threading.Event)
    pause_s: float = 0.0

    def open(self, model: Path, axes: Mapping[str, int]) -> Session:
        assert self.may_plan.wait(60)
        shapes = set[Shapes]()
        self.sessions.append(("/".join(model.parts[-4:-1]), shapes))
        return _Session(open_session(model, 1, axes=axes), self, model.parent.name, shapes)


class _Session(PlainSession):
    cores = 0

    def __init__(self, session: Session, device: CountingDevice, type: str, shapes: set[Shapes]) -> None:
        self.inputs, self.outputs, self.metadata = session.inputs, session.outputs, session.metadata
        self._session, self._device, self._type, self._shapes = session, device, type, shapes

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        self._shapes.add(shapes_of(feed))
        time.sleep(self._device.pause_s)
        if self._type in self._device.breaks:
            raise RuntimeError("CUDA failure 999: the driver is gone")
        answers = self._session.run(feed)
        return [answer[..., ::-1] * -1 for answer in answers] if self._type in self._device.lies else answers


class TestDevices(Devices):
    """The devices of a machine that has the stand-in."""

    __test__ = False  # not a class of tests, despite its name

    def __init__(self, device: CountingDevice, wanted: str = "cuda") -> None:
        """wanted: the device setting of all tasks, "auto" or any name."""
        super().__init__(wanted=dict.fromkeys(("clip", "facial-recognition", "ocr"), wanted))
        self.device = device

    def named(self, wanted: str) -> Device | None:
        return self.device

    def describe(self) -> str:
        return "a device of the tests"
