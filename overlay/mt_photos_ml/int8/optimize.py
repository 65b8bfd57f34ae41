# SPDX-License-Identifier: AGPL-3.0-only
"""Writes int8 variants of models, and keeps those that give the original's vectors for the user's own photos."""

import importlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from ..machine.files import size_of, sync
from ..models.catalog import CLIP, FACES, ModelRef
from ..models.variants import variant_of, write_record
from ..runtime.prepared.fingerprint import Fingerprint, fingerprint
from ..settings import Settings
from ..settings.values import clean_name
from .measure import OptimizeError, compare, record_requests, sample_photos
from .quantize import WAYS, write_plain

log = logging.getLogger("mt_photos_ml")

_NETWORKS = ((CLIP, "visual"), (CLIP, "textual"), (FACES, "recognition"))


@dataclass(frozen=True)
class Trial:
    """An int8 variant compared with its original. milliseconds: of an inference, megabytes: on disk, before and after.

    mean, worst: cosine of its vectors to the original's. worst_on: the photo or the search with the worst.
    """

    ref: ModelRef
    way: str
    milliseconds: tuple[float, float]
    megabytes: tuple[float, float]
    mean: float
    worst: float
    worst_on: str
    kept: bool


def optimize(settings: Settings, name: str, photos: Sequence[Path], threads: int) -> Iterator[Trial]:
    """Tries int8 for each part of a model in the cache. Keeps good variants beside the original and deletes the others.

    photos: files and folders. threads: per inference, as in the service. Raises OptimizeError.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # the quantizer logs a line per node to the root logger
    try:
        for module in ("onnx", "onnxruntime.quantization"):
            importlib.import_module(module)
    except ImportError as error:
        raise OptimizeError(f"{error}: `{sys.executable} -m pip install onnx onnx-ir` installs it") from None
    cache, name = settings.cache_folder, clean_name(name)
    refs = [ModelRef(task, name, type) for task, type in _NETWORKS]
    refs = [ref for ref in refs if not ref.missing(cache)]
    if not refs:
        raise OptimizeError(f"{cache} has no CLIP or face model {name}; `mt-photos-ml models list` shows what is there")
    sample = sample_photos(photos)
    for ref in refs:
        yield from _optimize_one(ref, settings, sample, threads)


def _optimize_one(ref: ModelRef, settings: Settings, photos: Sequence[Path], threads: int) -> list[Trial]:
    """Tries one way after the other until one is good enough."""
    staging = ref.path(settings.cache_folder).parent / ".int8.partial"
    shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed
    try:
        staging.mkdir()
        tempfile.tempdir = str(staging)  # the quantizer writes a gigabyte, and a container's /tmp may be memory
        return _try_ways(staging, ref, settings, photos, threads)
    except OptimizeError:
        raise
    except Exception as error:  # a quantizer may raise anything for a model that it can't convert
        log.debug("optimizing failed", exc_info=True)
        raise OptimizeError(f"{ref}: {str(error) or type(error).__name__}") from error
    finally:
        tempfile.tempdir = None
        shutil.rmtree(staging, ignore_errors=True)


def _try_ways(staging: Path, ref: ModelRef, settings: Settings, photos: Sequence[Path], threads: int) -> list[Trial]:
    model = ref.path(settings.cache_folder)
    original = fingerprint(model)
    asked = record_requests(ref, settings, photos, threads)
    teach, measure = (asked[::2], asked[1::2]) if ref.type == "recognition" else ([], asked)
    plain, target = write_plain(model, staging), variant_of(model)
    size = size_of(staging) / 1e6
    written = staging / target.parent.name / target.name
    trials: list[Trial] = []
    for way, quantise in WAYS[ref.type].items():
        log.info("%s: trying int8, %s", ref, way)
        shutil.rmtree(written.parent, ignore_errors=True)
        written.parent.mkdir()
        try:
            quantise(plain, written, [feed for _, feed in teach])
        except ImportError as error:  # the base image has no onnx_ir
            log.warning("%s: skipping %s: %s", ref, way, error)
            continue
        cosines, milliseconds = compare((model, written), threads, [feed for _, feed in measure])
        mean, worst = float(cosines.mean()), float(cosines.min())
        kept = mean >= settings.int8_min_mean and worst >= settings.int8_min_worst
        worst_on = measure[int(cosines.argmin())][0]
        trials.append(Trial(ref, way, milliseconds, (size, size_of(written.parent) / 1e6), mean, worst, worst_on, kept))
        if kept:
            _place(written, target, original, trials[-1], len(measure))
            return trials
    shutil.rmtree(target.parent, ignore_errors=True)  # left by an earlier run with other photos
    return trials


def _place(written: Path, target: Path, original: Fingerprint, trial: Trial, measured_on: int) -> None:
    """Moves the variant with its record from the staging folder to its place beside the original."""
    figures = {
        "onnxruntime": onnxruntime.__version__,
        "way": trial.way,
        "mean": trial.mean,
        "worst": trial.worst,
        "milliseconds": trial.milliseconds,
        "measured_on": measured_on,
    }
    write_record(written.parent, original, figures)
    sync(written.parent.iterdir())
    shutil.rmtree(target.parent, ignore_errors=True)
    written.parent.rename(target.parent)
