# SPDX-License-Identifier: AGPL-3.0-only
"""Writes int8 variants of models, and keeps those that answer to a person's own photos as the original does."""

import importlib
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .models.catalog import CLIP, FACES, INT8_RECORD, Part, int8_of, made_of
from .photo import DecoderMissing, Photo, PhotoError
from .runtime import Node, Session
from .runtime.ort import OrtSession, options
from .settings import Settings, clean_name
from .tasks import clip, faces

log = logging.getLogger("mt_photos_ml")

MOST = 200
"""Photos, or faces in them, that a variant is measured on."""
LEAST_PHOTOS, LEAST_FACES = 10, 20

SEARCHES = (
    *("海边的日落", "雪山", "猫", "狗在草地上奔跑", "生日蛋糕", "婚礼", "飞机", "红色的汽车", "夜晚的城市", "樱花"),
    *("孩子在玩雪", "火锅", "身份证", "车票", "合影", "下雨的街道", "游泳池", "自行车", "圣诞树", "手写的笔记"),
    *(
        "sunset",
        "snow",
        "a cat",
        "a dog on the beach",
        "birthday cake",
        "wedding",
        "airplane",
        "red car",
        "city at night",
    ),
    *("baby", "pizza", "screenshot", "receipt", "group photo", "rainy street", "bicycle", "lake", "handwritten notes"),
)
"""What people search for; a textual half is measured on this."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
_KINDS = ((CLIP, "visual"), (CLIP, "textual"), (FACES, "recognition"))

Feed = Mapping[str, NDArray[Any]]
Way = Callable[[Path, Path, Sequence[Feed]], None]
"""Quantises: the model file, the file to be written, and what the service asks of such a model."""


class Refused(RuntimeError):
    """Nothing can be measured or written; the message says why, for a person to read."""


@dataclass(frozen=True)
class Trial:
    """An int8 variant beside its original. milliseconds: an inference, before and after. megabytes: on disk.

    mean, worst: cosine of its vectors to the original's. worst_on: the photo or the search of the worst.
    """

    part: Part
    way: str
    milliseconds: tuple[float, float]
    megabytes: tuple[float, float]
    mean: float
    worst: float
    worst_on: str
    kept: bool


def optimize(settings: Settings, name: str, photos: Sequence[Path], threads: int) -> Iterator[Trial]:
    """Tries each part of a model in the cache. What is kept lies beside the original; of the rest nothing is left.

    photos: files and folders. threads: of one inference, as the service has them. Raises Refused.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # the quantizer talks to the root logger, a line a node
    try:
        for module in ("onnx", "onnxruntime.quantization"):
            importlib.import_module(module)
    except ImportError as error:
        raise Refused(f"{error}: `{sys.executable} -m pip install onnx onnx-ir` brings what this needs") from None
    cache, name = settings.cache_folder, clean_name(name)
    parts = [Part(folder, name, kind) for folder, kind in _KINDS]
    parts = [part for part in parts if not part.missing(cache)]
    if not parts:
        raise Refused(f"{cache} has no CLIP or face model {name}; `mt-photos-ml models list` shows what is there")
    sample = _sample(photos)
    for part in parts:
        yield from _tried(part, settings, sample, threads)


def _sample(paths: Sequence[Path]) -> list[Path]:
    """MOST of the photos in these files and folders at random, the same each time."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise Refused(f"there is no {path}")
        found += sorted(_photos_below(path)) if path.is_dir() else [path]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:MOST]]


def _photos_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in ".@#"]  # where a NAS keeps previews and deleted files
        yield from (Path(parent, file) for file in files if file.lower().endswith(_SUFFIXES))


def _tried(part: Part, settings: Settings, photos: Sequence[Path], threads: int) -> list[Trial]:
    """One way after the other until one is good enough."""
    staging = part.path(settings.cache_folder).parent / ".int8.partial"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        staging.mkdir()
        tempfile.tempdir = str(staging)  # where the quantizer's gigabyte goes: a container's /tmp may be memory
        return _tried_in(staging, part, settings, photos, threads)
    except Refused:
        raise
    except Exception as error:  # what a quantizer raises for a model that it can't do is not ours to list
        log.debug("optimizing failed", exc_info=True)
        raise Refused(f"{part}: {str(error) or type(error).__name__}") from error
    finally:
        tempfile.tempdir = None
        shutil.rmtree(staging, ignore_errors=True)


def _tried_in(staging: Path, part: Part, settings: Settings, photos: Sequence[Path], threads: int) -> list[Trial]:
    model = part.path(settings.cache_folder)
    made = made_of(model)
    asked = _asked(part, settings, photos, threads)
    teach, measure = (asked[::2], asked[1::2]) if part.kind == "recognition" else ([], asked)
    plain, target = _plain(model, staging), int8_of(model)
    size = _megabytes(staging)
    written = staging / target.parent.name / target.name
    trials: list[Trial] = []
    for way, quantise in _WAYS[part.kind].items():
        log.info("%s: trying int8, %s", part, way)
        shutil.rmtree(written.parent, ignore_errors=True)
        written.parent.mkdir()
        try:
            quantise(plain, written, [feed for _, feed in teach])
        except ImportError as error:  # the base image has no onnx_ir
            log.warning("%s: %s is left out: %s", part, way, error)
            continue
        cosines, milliseconds = _compared((model, written), threads, [feed for _, feed in measure])
        mean, worst = float(cosines.mean()), float(cosines.min())
        kept = mean >= settings.int8_min_mean and worst >= settings.int8_min_worst
        worst_on = measure[int(cosines.argmin())][0]
        trials.append(Trial(part, way, milliseconds, (size, _megabytes(written.parent)), mean, worst, worst_on, kept))
        if kept:
            _place(written, target, made, trials[-1], len(measure))
            return trials
    shutil.rmtree(target.parent, ignore_errors=True)  # of an earlier run, with other photos
    return trials


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def _place(written: Path, target: Path, made: list[int | str], trial: Trial, measured_on: int) -> None:
    """From the staging folder to beside the original, as a whole."""
    import onnxruntime

    record = {
        "original": made,
        "onnxruntime": onnxruntime.__version__,
        "way": trial.way,
        "mean": trial.mean,
        "worst": trial.worst,
        "milliseconds": trial.milliseconds,
        "measured_on": measured_on,
    }
    (written.parent / INT8_RECORD).write_text(json.dumps(record, indent=2) + "\n")
    for path in written.parent.iterdir():
        with path.open("rb") as whole:
            os.fsync(whole.fileno())
    shutil.rmtree(target.parent, ignore_errors=True)
    written.parent.rename(target.parent)


def _plain(model: Path, folder: Path) -> Path:
    """The model with its constants worked out, in two files: protobuf takes no 2 GB."""
    import onnxruntime

    chosen, path = options(0), folder / "plain.onnx"
    chosen.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    chosen.optimized_model_filepath = str(path)
    chosen.add_session_config_entry("session.optimized_model_external_initializers_file_name", "plain.bin")
    chosen.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    onnxruntime.InferenceSession(
        model,
        chosen,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["MatMulAddFusion"],  # it makes Gemm of MatMul, which has no form in blocks
    )
    return path


# Weights of 7 bits, a channel at a time: products of 8 overflow on processors without VNNI (onnxruntime's manual on
# quantization), and the variant is to answer alike on all.


def _dynamic(plain: Path, written: Path, feeds: Sequence[Feed]) -> None:
    """A scale for all that flows into a product, found anew for each photo: the quickest."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(plain, written, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True)


def _in_blocks(plain: Path, written: Path, feeds: Sequence[Feed]) -> None:
    """A scale for every 64 numbers: what stands out spoils only its neighbours."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(str(plain), bits=8, block_size=64, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(written), False)


class _Reader:
    """Feeds, as the quantizer wants to be given them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._left, None)


def _calibrated(plain: Path, written: Path, feeds: Sequence[Feed]) -> None:
    """Scales fixed beforehand, by what flows for these feeds: the one way in which convolutions gain."""
    from onnxruntime.quantization import QuantType, quantize_static

    quantize_static(
        plain,
        written,
        _Reader(feeds),
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


_WAYS: dict[str, dict[str, Way]] = {
    "visual": {"dynamic": _dynamic, "in blocks": _in_blocks},
    "textual": {"dynamic": _dynamic, "in blocks": _in_blocks},
    "recognition": {"calibrated": _calibrated},
}


def _opened(model: Path, threads: int) -> OrtSession:
    """On the processor, for which int8 is."""
    import onnxruntime

    try:
        return OrtSession(onnxruntime.InferenceSession(model, options(threads), providers=["CPUExecutionProvider"]))
    except Exception as error:  # onnxruntime has no class for its errors
        raise Refused(f"{model} can't be opened: {error}") from error


class _Remembering:
    """Stands in for a session and remembers what it is asked."""

    metadata: Mapping[str, str] = {}

    def __init__(self, inputs: Sequence[Node]) -> None:
        self.inputs, self.asked = inputs, list[Feed]()

    def run(self, feed: Feed) -> list[NDArray[Any]]:
        self.asked.append(feed)
        return [np.ones((1, 1), np.float32)]


def _asked(part: Part, settings: Settings, photos: Sequence[Path], threads: int) -> list[tuple[str, Feed]]:
    """What the service would ask of the model for each photo, face or search, and which that is. Raises Refused."""
    model = part.path(settings.cache_folder)
    remembering, folder = _Remembering(_opened(model, threads).inputs), model.parent
    if part.kind == "textual":
        textual = clip.Textual.load(remembering, folder)
        for search in SEARCHES:
            clip.encode_text(search, textual, settings.clip_language)
        return list(zip(SEARCHES, remembering.asked, strict=True))
    ask: Callable[[Photo], object]
    if part.kind == "visual":
        ask = partial(clip.encode_photo, visual=clip.Visual.load(remembering, folder))
        least, what = LEAST_PHOTOS, "photos"
    else:
        detector = faces.Detector(_opened(Part(FACES, part.name, "detection").path(settings.cache_folder), threads))
        recogniser, score = faces.Recogniser(remembering, 1), settings.face_min_score
        ask = partial(faces.find, detector=detector, recogniser=recogniser, min_score=score)
        least, what = LEAST_FACES, "faces"
    log.info("%s: looking at %d photos", part, len(photos))
    names: list[str] = []
    for path in photos:
        try:
            ask(Photo.open(path.read_bytes()))
        except (PhotoError, DecoderMissing, OSError) as error:
            log.warning("%s is left out: %s", path, error)
        names += [str(path)] * (len(remembering.asked) - len(names))
        if len(names) >= MOST:
            break
    if len(names) < least:
        raise Refused(
            f"{part}: at least {least} {what} are needed to tell, and {len(names)} were found; name more photos"
        )
    return list(zip(names, remembering.asked, strict=True))[:MOST]


def _compared(
    models: tuple[Path, Path], threads: int, feeds: Sequence[Feed]
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """The cosine for each feed, and the median milliseconds of both, asked in turn."""
    sessions = [_opened(model, threads) for model in models]
    cosines: list[float] = []
    spent: tuple[list[float], list[float]] = ([], [])
    for feed in (feeds[0], *feeds):  # once more the first, which is slow
        a, b = (_timed(session, feed, ms) for session, ms in zip(sessions, spent, strict=True))
        cosines.append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
    return np.array(cosines[1:]), (statistics.median(spent[0][1:]), statistics.median(spent[1][1:]))


def _timed(session: Session, feed: Feed, milliseconds: list[float]) -> NDArray[np.float64]:
    """The vector; how long it took goes on the list."""
    started = time.perf_counter()
    (vector, *_) = session.run(feed)
    milliseconds.append((time.perf_counter() - started) * 1000)
    return vector.ravel().astype(np.float64)
