# SPDX-License-Identifier: AGPL-3.0-only
"""Identifies model files, to match a file with the model it was made from. Imports neither numpy nor onnxruntime."""

import platform
from hashlib import sha256
from pathlib import Path

Fingerprint = list[int | str]
"""A file's size and a digest, as JSON keeps them."""

_FORMAT = 1  # of prepared models; a new number has all of them written again
_CPU_FIELDS = ("flags", "Features", "CPU implementer", "CPU part")  # of /proc/cpuinfo, on x86 and on ARM


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of a file, from 16 pieces, its end included, because reading all of it takes up to a second."""
    length, digest = path.stat().st_size, sha256()
    piece = min(16_384, length)  # bytes
    with path.open("rb") as file:
        for i in range(16):
            file.seek(i * (length - piece) // 15)
            digest.update(file.read(piece))
    return [length, digest.hexdigest()[:16]]


def cache_key(model: Path) -> str:
    """Identifies the files of a model, this onnxruntime and this processor together."""
    import onnxruntime as ort

    digest = sha256(f"{_FORMAT} {ort.__version__} {ort.get_build_info()} {_cpu()}".encode())
    for path in model_files(model):
        digest.update(f"{path.name} {path.stat().st_mtime_ns} {fingerprint(path)}".encode())
    return digest.hexdigest()[:16]


def model_files(model: Path) -> list[Path]:
    """The model file and those beside it, which may hold its weights."""
    return sorted(
        path for path in model.parent.iterdir() if path.is_file() and path.suffix != ".json" and path.name[0] != "."
    )


def _cpu() -> str:
    """The fields by which onnxruntime's kernels choose how to pack weights."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    return f"{platform.machine()} {sorted({line for line in lines if line.startswith(_CPU_FIELDS)})}"
