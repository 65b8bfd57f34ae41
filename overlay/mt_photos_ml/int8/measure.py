# SPDX-License-Identifier: AGPL-3.0-only
"""Measures an int8 variant on the user's own photos, the faces in them, and searches."""

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.catalog import FACES, ModelRef
from ..photo import Photo
from ..photo.decoders import DecoderMissing, PhotoError
from ..runtime import Node, PlainSession, Session, Tensors
from ..runtime.ort import OrtSession, session_options
from ..settings import Settings
from ..tasks import clip, faces

log = logging.getLogger("mt_photos_ml")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
MOST = 200
"""The most photos, or faces in them, to measure a variant on."""
LEAST_PHOTOS, LEAST_FACES = 10, 20

SEARCHES = tuple(Path(__file__).with_name("searches.txt").read_text(encoding="utf-8").splitlines())
"""Typical searches, to measure a text encoder on."""


class OptimizeError(RuntimeError):
    """A variant can't be measured or written; the message tells the user why."""


def sample_photos(paths: Sequence[Path]) -> list[Path]:
    """Picks at most MOST of the photos in these files and folders, at random but the same each time."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise OptimizeError(f"{path} does not exist")
        found += sorted(photos_of(path)) if path.is_dir() else [path]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:MOST]]


def photos_of(folder: Path) -> Iterator[Path]:
    """The photos below a folder, without the previews and deleted files that a NAS keeps there."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in ".@#"]
        yield from (Path(parent, file) for file in files if file.lower().endswith(SUFFIXES))


def _open(model: Path, threads: int) -> OrtSession:
    """Opens a model on the processor, the only device for int8 variants."""
    import onnxruntime

    try:
        return OrtSession(
            onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
        )
    except Exception as error:  # onnxruntime has no class for its errors
        raise OptimizeError(f"{model} can't be opened: {error}") from error


class _RecordingSession(PlainSession):
    """Stands in for a session and records its inputs."""

    cores = 1
    outputs: Sequence[Node] = ()
    metadata: Mapping[str, str] = {}

    def __init__(self, inputs: Sequence[Node]) -> None:
        self.inputs, self.asked = inputs, list[Tensors]()

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        self.asked.append(feed)
        return [np.ones((1, 1), np.float32)]


def record_requests(
    ref: ModelRef, settings: Settings, photos: Sequence[Path], threads: int
) -> list[tuple[str, Tensors]]:
    """Each photo, face or search, and the input that the service would give the model for it. Raises OptimizeError."""
    model = ref.path(settings.cache_folder)
    recorder, folder = _RecordingSession(_open(model, threads).inputs), model.parent
    if ref.type == "textual":
        textual = clip.Textual.load(recorder, folder)
        for search in SEARCHES:
            clip.encode_text(search, textual, settings.clip_language)
        return list(zip(SEARCHES, recorder.asked, strict=True))
    ask: Callable[[Photo], object]
    if ref.type == "visual":
        ask = partial(clip.encode_photo, visual=clip.Visual.load(recorder, folder))
        least, what = LEAST_PHOTOS, "photos"
    else:
        detector = faces.Detector(_open(ModelRef(FACES, ref.name, "detection").path(settings.cache_folder), threads))
        recogniser, score = faces.Recogniser(recorder, 1), settings.face_min_score
        ask = partial(faces.find, detector=detector, recogniser=recogniser, min_score=score)
        least, what = LEAST_FACES, "faces"
    log.info("%s: looking at %d photos", ref, len(photos))
    names: list[str] = []
    for path in photos:
        try:
            ask(Photo.open(path.read_bytes()))
        except (PhotoError, DecoderMissing, OSError) as error:
            log.warning("skipping %s: %s", path, error)
        names += [str(path)] * (len(recorder.asked) - len(names))
        if len(names) >= MOST:
            break
    if len(names) < least:
        raise OptimizeError(
            f"{ref}: a measurement needs at least {least} {what}, but {len(names)} were found; name more photos"
        )
    return list(zip(names, recorder.asked, strict=True))[:MOST]


def compare(
    models: tuple[Path, Path], threads: int, feeds: Sequence[Tensors]
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Runs both models in turn. Returns the cosine of their vectors for each feed, and the median milliseconds."""
    sessions = [_open(model, threads) for model in models]
    cosines: list[float] = []
    spent: tuple[list[float], list[float]] = ([], [])
    for feed in (feeds[0], *feeds):  # the first twice, because a first run is slow
        a, b = (_timed(session, feed, ms) for session, ms in zip(sessions, spent, strict=True))
        cosines.append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
    return np.array(cosines[1:]), (statistics.median(spent[0][1:]), statistics.median(spent[1][1:]))


def _timed(session: Session, feed: Tensors, milliseconds: list[float]) -> NDArray[np.float64]:
    """Returns the vector, and adds its time to the list."""
    started = time.perf_counter()
    (vector, *_) = session.run(feed)
    milliseconds.append((time.perf_counter() - started) * 1000)
    return vector.ravel().astype(np.float64)
