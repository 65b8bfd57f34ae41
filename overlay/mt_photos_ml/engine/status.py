# SPDX-License-Identifier: AGPL-3.0-only
"""The status of an engine, for the page and for the metrics' gauges."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ..machine.files import size_of
from ..models.catalog import ModelRef, Role
from ..models.progress import Download, ModelState
from ..models.sources import file_in_wheel
from ..runtime.prepared.runtime import FOLDER
from ..runtime.shaped import Plans


@dataclass(frozen=True)
class ModelStatus:
    """A model in use. task: as TASKS calls it. state: a name of ModelState, or "missing" if it must be downloaded.

    idle_s: seconds since its last use. memory_mb: memory that loading it took. error: why it is unavailable. download:
    the progress of a download. plans: shapes planned on its device, if it runs on one.
    """

    task: str
    type: str
    name: str
    state: str
    runs_on: str
    idle_s: int | None
    memory_mb: int | None
    error: str | None
    disk_mb: int
    prepared: bool
    variant: str
    download: dict[str, object] | None
    plans: Plans | None

    @classmethod
    def of(
        cls,
        role: Role,
        ref: ModelRef,
        cache: Path,
        state: ModelState,
        runs_on: str,
        download: Download | None,
        plans: Plans | None,
    ) -> Self:
        """The status of a model; reads its files in the cache."""
        folder = ref.path(cache).parent
        is_missing = state.name == "not loaded" and ref.missing(cache) and file_in_wheel(ref) is None
        return cls(
            task=role.task,
            type=ref.type,
            name=ref.name,
            state="missing" if is_missing else state.name,
            runs_on=runs_on,
            idle_s=None if state.idle is None else round(state.idle),
            memory_mb=None if state.memory_mb is None else round(state.memory_mb),
            error=state.error,
            disk_mb=round(size_of(folder) / 1e6),
            prepared=(folder / FOLDER).is_dir(),
            variant=ref.variant,
            download=asdict(download) | {"ref": str(ref)} if download and state.name == "downloading" else None,
            plans=plans,
        )


@dataclass(frozen=True)
class EngineStatus:
    """The status of an engine. runtime: its name and devices, for people. card_mb: memory in use on an Nvidia card.
    refused: devices that can't be used, and why."""

    runtime: str
    card_mb: int | None
    refused: list[str]
    models: list[ModelStatus]
