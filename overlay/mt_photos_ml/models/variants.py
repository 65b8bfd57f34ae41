# SPDX-License-Identifier: AGPL-3.0-only
"""The int8 variant of a model file: `models optimize` writes it, and the service opens it instead of the model file."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..runtime.prepared.fingerprint import Fingerprint, fingerprint

INT8 = "int8"
_RECORD = "record.json"


def variant_of(model: Path, variant: str = INT8) -> Path:
    """The path of a model file's variant; the model file itself if variant is empty."""
    return model.parent / variant / model.name


def write_record(folder: Path, original: Fingerprint, figures: Mapping[str, object]) -> None:
    """Writes a record beside a variant: which file it was made from, and what was measured."""
    (folder / _RECORD).write_text(json.dumps({"original": original, **figures}, indent=2) + "\n")


def is_fresh(model: Path) -> bool:
    """Whether the int8 variant was made from the present model file."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((variant_of(model).parent / _RECORD).read_text())
        return bool(record["original"] == fingerprint(model))
    return False
