# SPDX-License-Identifier: AGPL-3.0-only
"""Sessions and downloads of the base image: every device and format of upstream's, through its public names."""

import asyncio
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from . import Node, Opened
from .onnx import damage_told, empty_arena, options
from .prepared import Prepared

WRITTEN_FOR = "v2.5.6"
"""The upstream version whose names these are."""

NAMES: dict[str, tuple[str, ...]] = {
    "immich_ml.upstream_main": ("app", "load", "model_cache", "update_state"),
    "immich_ml.config": ("CustomUvicornWorker", "log"),  # the worker in gunicorn.conf.py
    "immich_ml.models": ("from_model_type",),
    "immich_ml.schemas": ("ModelTask", "ModelType"),
    "immich_ml.sessions.ort": ("OrtSession",),
}
"""Everything of upstream that we use, by module."""


class UpstreamChanged(RuntimeError):
    """Upstream no longer has a name that we use."""


def upstream(module: str, name: str) -> Any:
    """One of NAMES. Raises UpstreamChanged."""
    assert name in NAMES[module], f"{module}.{name} is not on the list"
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise UpstreamChanged(
            f"upstream has no {module}.{name} any more; this overlay was written for immich-machine-learning "
            f"{WRITTEN_FOR}"
        ) from None


def check() -> None:
    """Raises UpstreamChanged where a name is gone, so that the start fails and not a request much later."""
    for module, names in NAMES.items():
        for name in names:
            upstream(module, name)


class Part(Protocol):
    """One network of a model, as the catalogue has it."""

    @property
    def folder(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...


P = TypeVar("P", bound=Part, contravariant=True)


class Files(Protocol[P]):
    """Who else can bring model files: what models/store.py calls a source."""

    def fetch(self, part: P) -> Path: ...

    def discard(self, part: P, files: Sequence[str]) -> bool: ...


def _model(folder: str, name: str, kind: str) -> Any:
    """Upstream's model, not loaded; None where it does not know the name: one of the user's own, or of ours."""
    task = upstream("immich_ml.schemas", "ModelTask")(folder)
    type_ = upstream("immich_ml.schemas", "ModelType")(kind)
    try:
        return upstream("immich_ml.models", "from_model_type")(name, type_, task)
    except ValueError:
        return None


class ImmichSource(Generic[P]):
    """Upstream's downloads for the formats of its devices; for plain onnx files ours, which tries one mirror after the
    other and resumes. What it brings is what upstream then finds there."""

    def __init__(self, cache: Path, files: Files[P]) -> None:
        self._cache, self._files = cache, files

    def fetch(self, part: P) -> Path:
        model = _model(part.folder, part.name, part.kind)
        if model is None or model.model_format == "onnx":
            return self._files.fetch(part)
        try:
            model.download()
        except FileNotFoundError:  # upstream has no such file for this device, and takes the onnx file then
            return self._files.fetch(part)
        return self._cache / part.folder / part.name / part.kind / "model.onnx"  # its name here, whatever the format

    def discard(self, part: P, files: Sequence[str]) -> bool:
        return self._files.discard(part, files)


class ImmichSession:
    """An upstream session behind the seam."""

    one_thread = None

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs: Sequence[Node] = session.get_inputs()
        bare = getattr(session, "session", None)  # onnxruntime's, where it is one; the others carry no metadata
        self.metadata: Mapping[str, str] = bare.get_modelmeta().custom_metadata_map if bare is not None else {}

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return list(self._session.run(None, dict(feed)))


class ImmichRuntime:
    """Upstream's sessions: on the processor with our options, of prepared models; on a device of upstream's own
    models, which its routes share: what is loaded for one is there for the other."""

    def __init__(self, cache: Path, threads: int, prepared: Prepared | None) -> None:
        """cache: the folder of the models. threads: for one inference on the processor."""
        self._cache, self._threads, self._prepared = cache, threads, prepared
        self._loop: asyncio.AbstractEventLoop | None = None

    def started(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop that upstream's coroutines run in; to be told before the first model is opened."""
        self._loop = loop

    async def release(self) -> None:
        """Empties upstream's cache of models; who works with one keeps it until done."""
        await upstream("immich_ml.upstream_main", "model_cache").cache.clear()

    def open(self, model: Path) -> Opened:
        folder, name, kind, *below = model.relative_to(self._cache).parts
        alone = _model(folder, name, kind) if len(below) == 1 else None  # a variant in a folder of its own is not known
        if _on_the_processor() and (alone is None or alone.model_format == "onnx"):
            if self._prepared is not None:
                return self._prepared.open(model, self._session, self._threads)
            return self._session(model, self._threads)
        if alone is None:
            return ImmichSession(upstream("immich_ml.sessions.ort", "OrtSession")(model))
        assert self._loop is not None
        try:
            shared = asyncio.run_coroutine_threadsafe(_shared(folder, name, kind), self._loop).result()
        except Exception:  # what failed twice upstream keeps and refuses for good, mended file or not
            alone.load()
            return ImmichSession(alone.session)
        return ImmichSession(shared.session)

    def give_back(self) -> None:
        empty_arena()

    def close(self) -> None:
        if self._prepared is not None:
            self._prepared.close()

    def _session(self, model: Path, threads: int) -> ImmichSession:
        with damage_told(model):
            session = upstream("immich_ml.sessions.ort", "OrtSession")(model, sess_options=options(threads))
        return ImmichSession(session)

    def describe(self) -> str:
        return f"immich-machine-learning {WRITTEN_FOR}"


def _on_the_processor() -> bool:
    """Whether this onnxruntime was built for nothing else."""
    import onnxruntime as ort

    return not set(ort.get_available_providers()) - {"CPUExecutionProvider", "AzureExecutionProvider"}


async def _shared(folder: str, name: str, kind: str) -> Any:
    """The model in upstream's own cache, loaded as upstream loads: one at a time, once more after a damaged file."""
    task = upstream("immich_ml.schemas", "ModelTask")(folder)
    type_ = upstream("immich_ml.schemas", "ModelType")(kind)
    model = await upstream("immich_ml.upstream_main", "model_cache").get(name, type_, task)
    return await upstream("immich_ml.upstream_main", "load")(model)
