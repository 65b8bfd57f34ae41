# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m mt_photos_ml.runtime.prepared.write MODEL FOLDER THREADS SHAPE` writes the prepared form of a model.
A process of its own frees all its memory when it ends, and a crash of onnxruntime in it does not end the service."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import Session
from ..example import example, shapes_like
from .layout import align

if TYPE_CHECKING:
    import onnxruntime

MODEL, WEIGHTS, EXAMPLE = "model.onnx", "weights.bin", "tried.npz"
REFUSED = 30
"""Exit status if the model can never be prepared; 3 and 4 mean something to gunicorn."""

_MIN_MAPPED_BYTES = 65_536


class PrepareError(RuntimeError):
    """A model can't be prepared here; the message says why."""


def prepare(
    model: Path, folder: Path, threads: int, shape: Sequence[int], min_mapped_bytes: int = _MIN_MAPPED_BYTES
) -> None:
    """Writes MODEL, WEIGHTS and EXAMPLE. shape: of an input that the service gives the model, for its free axes.
    min_mapped_bytes: smaller weights stay in MODEL. Raises PrepareError if the written model answers differently."""
    entries = {
        "optimized_model_external_initializers_file_name": WEIGHTS,
        "optimized_model_external_initializers_min_size_in_bytes": str(min_mapped_bytes),
        "save_external_prepacked_constant_initializers": "1",
    }
    original = _open(model, threads, folder / MODEL, entries)
    try:
        feed = example(shapes_like(original.get_inputs(), shape))
    except ValueError as error:
        raise PrepareError(str(error)) from error
    expected = original.run(None, feed)
    del original
    if (folder / WEIGHTS).is_file():
        align(folder / MODEL, folder / WEIGHTS)
    if not _close(_open(folder / MODEL, threads).run(None, feed), expected):
        raise PrepareError("the prepared model's answers differ from the original's")
    arrays: dict[str, Any] = {f"in {name}": value for name, value in feed.items()}
    np.savez(folder / EXAMPLE, **arrays, **{f"out {i}": value for i, value in enumerate(expected)})


def check_answer(session: Session, folder: Path) -> None:
    """Raises ValueError if a session's answers to the example differ from the original's."""
    with np.load(folder / EXAMPLE) as example:
        feed = {name.removeprefix("in "): example[name] for name in example.files if name.startswith("in ")}
        expected = [example[f"out {i}"] for i in range(len(example.files) - len(feed))]
    if not _close(session.run(feed), expected):
        raise ValueError("its answers differ from the original's")


def _open(
    path: Path, threads: int, written: Path | None = None, entries: Mapping[str, str] = {}
) -> "onnxruntime.InferenceSession":
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if written:
        options.optimized_model_filepath = str(written)
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _close(answers: list[NDArray[Any]], expected: list[NDArray[Any]]) -> bool:
    return len(answers) == len(expected) and all(
        a.shape == e.shape and np.allclose(a, e, rtol=1e-3, atol=1e-4, equal_nan=True)
        for a, e in zip(answers, expected, strict=True)
    )


def _lower_priority() -> None:
    """Gives the service priority on the CPU, and has the system kill this process first if memory runs out."""
    with contextlib.suppress(AttributeError, OSError):
        os.nice(19)
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    _lower_priority()
    try:
        prepare(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), [int(n) for n in sys.argv[4].split("x")])
    except PrepareError as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
