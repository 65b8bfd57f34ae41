# SPDX-License-Identifier: AGPL-3.0-only
"""Keeps beside a model how long an inference takes on a device and on the processor."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import version
from .devices import Device
from .prepared.fingerprint import cache_key

RECORD = "devices.json"
"""The file beside a model."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of the same inference on a device and on the processor."""

    device: float
    processor: float
    is_worth_it: bool


def read_times(model: Path, device: Device) -> Times | None:
    """The times measured with these files, device, driver, processor, and versions of the service and of onnxruntime;
    None if there are none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return Times(**json.loads((model.parent / RECORD).read_text())[_key(model, device)])
    return None


def write_times(model: Path, device: Device, times: Times) -> None:
    """Keeps the times beside the model, unless the cache is read-only."""
    record, kept = model.parent / RECORD, dict[str, object]()
    with suppress(OSError, ValueError):
        kept = json.loads(record.read_text())
    with suppress(OSError):
        half = record.with_suffix(".half")
        half.write_text(json.dumps({**kept, _key(model, device): asdict(times)}, indent=2))
        half.replace(record)


def _key(model: Path, device: Device) -> str:
    return f"{device.name} {device.driver} {version()} {cache_key(model)}"
