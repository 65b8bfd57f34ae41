# SPDX-License-Identifier: AGPL-3.0-only
"""Which file is opened in place of a model file: its int8 variant, which `models optimize` writes beside it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..runtime.prepared.fingerprint import Fingerprint, fingerprint

INT8 = "int8"
_RECORD = "record.json"


def variant_of(model: Path, variant: str = INT8) -> Path:
    """Where the variant of a model file is, if it has one; the file itself for none."""
    return model.parent / variant / model.name


def write_record(folder: Path, original: Fingerprint, figures: Mapping[str, object]) -> None:
    """Beside a variant: what it was made of, and how good it was found to be."""
    (folder / _RECORD).write_text(json.dumps({"original": original, **figures}, indent=2) + "\n")


def is_fresh(model: Path) -> bool:
    """Whether the int8 variant was made of the model file as it is now."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((variant_of(model).parent / _RECORD).read_text())
        return bool(record["original"] == fingerprint(model))
    return False
