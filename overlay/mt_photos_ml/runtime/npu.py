# SPDX-License-Identifier: AGPL-3.0-only
"""Runs models with upstream's session classes on ARM NN (Mali) and Rockchip's NPU, which onnxruntime does not support.
Each needs its own model file; another runtime opens the models without one."""

import ctypes
import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from ..settings import Settings
from . import Node, PlainSession, Runtime, Session, Tensors

log = logging.getLogger("mt_photos_ml")

_SOCS = ("rk3566", "rk3568", "rk3576", "rk3588")
_COMPATIBLE = Path("/proc/device-tree/compatible")


@dataclass(frozen=True)
class Npu:
    """An NPU. file: path of a model for it, below the type's folder. session: module and name of upstream's class."""

    name: str
    file: str
    session: tuple[str, str]


def find_npu(settings: Settings, compatible: Path = _COMPATIBLE) -> Npu | None:
    """The NPU of this machine, if this is its image. compatible: the file in which the kernel names the board."""
    if settings.device == "armnn" and settings.ann:
        try:
            ctypes.CDLL("libmali.so")
            ctypes.CDLL("libann.so")
            return Npu("ARM NN", "model.armnn", ("immich_ml.sessions.ann", "AnnSession"))
        except OSError as error:
            log.warning("ARM NN can't be used here; the processor is used instead: %s", error)
    if settings.device == "rknn" and settings.rknn:
        try:
            board = compatible.read_text().replace("\0", " ").strip()
        except OSError as error:
            board = str(error)
        soc = next((soc for soc in _SOCS if soc in board), None)
        if soc and find_spec("rknnlite"):
            return Npu("Rockchip's NPU", f"rknpu/{soc}/model.rknn", ("immich_ml.sessions.rknn", "RknnSession"))
        why = "the package rknnlite is missing" if soc else board
        log.warning("Rockchip's NPU can't be used here; the processor is used instead: %s", why)
    return None


class NpuSession(PlainSession):
    """One of upstream's sessions. Runs one inference at a time, because Rockchip's mixes up parallel answers."""

    cores = 0
    outputs: Sequence[Node] = ()
    metadata: Mapping[str, str] = {}

    def __init__(self, session: Any) -> None:
        self._session, self._turn = session, Lock()
        self.inputs: Sequence[Node] = session.get_inputs()

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        with self._turn:
            return list(self._session.run(None, dict(feed)))


class NpuRuntime:
    """Opens models that have a file for the NPU on the NPU, and the others with another runtime."""

    def __init__(self, npu: Npu, others: Runtime) -> None:
        self._npu, self._others = npu, others

    def runs_on(self, model: Path) -> str:
        return self._npu.name if (model.parent / self._npu.file).is_file() else self._others.runs_on(model)

    def open(self, model: Path) -> Session:
        file = model.parent / self._npu.file
        module, name = self._npu.session
        try:
            if file.is_file():
                return NpuSession(getattr(importlib.import_module(module), name)(file))
        except Exception as error:
            if not model.is_file():
                raise RuntimeError(f"{self._npu.name} can't open {file}: {error}") from error
            log.warning("%s can't open %s; the processor is used instead: %s", self._npu.name, file, error)
        return self._others.open(model)
