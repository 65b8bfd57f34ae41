# SPDX-License-Identifier: AGPL-3.0-only
"""How long an inference takes on a device and on the processor: measured once, and kept beside the model."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from .devices import Device
from .prepared.fingerprint import cache_key

RECORD = "devices.json"
"""Beside a model: how long an inference takes on each device."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of the same inference on a device and on the processor."""

    device: float
    processor: float
    is_worth_it: bool


def read_times(model: Path, device: Device) -> Times | None:
    """What was measured of these very files, with this onnxruntime and processor; None if nothing was."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return Times(**json.loads((model.parent / RECORD).read_text())[f"{device.name} {cache_key(model)}"])
    return None


def write_times(model: Path, device: Device, times: Times) -> None:
    """Nothing is kept in a cache that can't be written."""
    record, kept = model.parent / RECORD, dict[str, object]()
    with suppress(OSError, ValueError):
        kept = json.loads(record.read_text())
    with suppress(OSError):
        half = record.with_suffix(".half")
        half.write_text(json.dumps({**kept, f"{device.name} {cache_key(model)}": asdict(times)}, indent=2))
        half.replace(record)
