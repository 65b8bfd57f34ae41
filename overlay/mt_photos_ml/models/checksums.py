# SPDX-License-Identifier: AGPL-3.0-only
"""What the files of a model should be: by the catalogue, or by SHA256SUMS beside them, written at the download."""

from collections.abc import Mapping
from pathlib import Path

from ..machine.files import has_sha256
from .catalog import OCR, OCR_MODELS, ModelRef

CHECKSUMS = "SHA256SUMS"


def known_checksums(folder: Path, ref: ModelRef) -> dict[str, str]:
    """SHA-256 by path, as far as it is known. folder: of the model."""
    if ref.task == OCR:
        known = OCR_MODELS.get(ref.name, {}).get(ref.type)
        return {ref.files[0]: known.sha256} if known else {}
    recorded = _read(folder).items()
    return {path: sha256 for path, sha256 in recorded if path in ref.files or path.startswith(f"{ref.type}/")}


def spoiled_files(folder: Path, ref: ModelRef) -> list[str]:
    """Those that are not what was published."""
    return [path for path, sha256 in known_checksums(folder, ref).items() if not has_sha256(folder / path, sha256)]


def record_checksums(folder: Path, ref: ModelRef, changes: Mapping[str, str | None]) -> None:
    """Into the file that `sha256sum -c` reads; None strikes a file out."""
    before = _read(folder)
    after = {path: sha256 for path, sha256 in {**before, **changes}.items() if sha256}
    if ref.task == OCR or after == before:
        return
    half = folder / f".{CHECKSUMS}"
    half.write_text("".join(f"{sha256}  {path}\n" for path, sha256 in sorted(after.items())))
    half.replace(folder / CHECKSUMS)


def _read(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
    except (OSError, ValueError):
        return {}
    return {path: sha256 for sha256, found, path in (line.partition("  ") for line in lines) if found}
