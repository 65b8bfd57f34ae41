# SPDX-License-Identifier: AGPL-3.0-only
"""Lists the files of a model that a source offers: Hugging Face or a mirror of it, ModelScope, RapidOCR's wheel."""

import importlib.util
import os
from pathlib import Path
from urllib.parse import quote

from ..machine.files import has_sha256
from .catalog import OCR, OCR_MODELS, ModelRef
from .network import SourceError, open_url, read_json, translate_source_errors
from .transfer import RemoteFile

_OTHER_FORMATS = (".armnn", ".rknn", ".onnx")


def repository(ref: ModelRef) -> str:
    return f"immich-app/{ref.name}"


@translate_source_errors()
def offered_files(ref: ModelRef, source: str, npu: str | None = None) -> list[RemoteFile]:
    """The model's files at a source, with sizes and checksums if it gives them. npu: a file that replaces model.onnx if
    the source has it. Raises SourceError."""
    if ref.group == OCR:
        address = f"{source}/{OCR_MODELS[ref.name][ref.type].path}"
        with open_url(address, "bytes=0-0") as answer:
            length = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length")
        return [RemoteFile(ref.files[0], address, int(length) if length else None, ref.sha256)]

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):  # as for Hugging Face's programs
        raise SourceError("HF_HUB_OFFLINE is set")
    try:
        found = read_json(f"{source}/api/models/{repository(ref)}?blobs=true")
        files = [
            RemoteFile(
                name,
                f"{source}/{repository(ref)}/resolve/{found['sha']}/{quote(name)}",
                file.get("size"),
                file["lfs"]["sha256"] if file.get("lfs") else None,
                None if file.get("lfs") else file.get("blobId"),
            )
            for file in found["siblings"]
            if (name := file["rfilename"]) == npu or _is_needed(ref, name)
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise SourceError("its answer is not a list of files") from None
    if npu in (offered := {file.path for file in files}):
        return [file for file in files if file.path == npu or file.path in ref.files[1:]]
    if lacking := set(ref.files) - offered:
        raise SourceError(f"its {repository(ref)} has no {', '.join(sorted(lacking))}")
    return files


def _is_needed(ref: ModelRef, path: str) -> bool:
    """Whether onnxruntime reads this file of the repository: one of ref.files, or weights beside the model file."""
    folder, _, name = path.rpartition("/")
    is_beside = folder == ref.type and not name.startswith(".") and not name.endswith(_OTHER_FORMATS)
    return path in ref.files or is_beside


def file_in_wheel(ref: ModelRef) -> Path | None:
    """The OCR model in the installed RapidOCR wheel, found without importing it; None if the wheel lacks it."""
    spec = importlib.util.find_spec("rapidocr") if ref.sha256 else None
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / "models" / OCR_MODELS[ref.name][ref.type].in_wheel
        if ref.sha256 and has_sha256(path, ref.sha256):
            return path
    return None
