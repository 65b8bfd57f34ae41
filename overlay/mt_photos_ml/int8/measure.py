# SPDX-License-Identifier: AGPL-3.0-only
"""What a variant is measured on: a person's own photos, the faces in them, and searches."""

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
"""Photos, or faces in them, that a variant is measured on."""
LEAST_PHOTOS, LEAST_FACES = 10, 20

SEARCHES = tuple(Path(__file__).with_name("searches.txt").read_text(encoding="utf-8").splitlines())
"""What people search for; a textual half is measured on this."""


class OptimizeError(RuntimeError):
    """Nothing can be measured or written; the message says why, for a person to read."""


def sample_photos(paths: Sequence[Path]) -> list[Path]:
    """MOST of the photos in these files and folders at random, the same each time."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise OptimizeError(f"there is no {path}")
        found += sorted(photos_of(path)) if path.is_dir() else [path]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:MOST]]


def photos_of(folder: Path) -> Iterator[Path]:
    """The photos below a folder, without what a NAS keeps beside them: previews and deleted files."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] not in ".@#"]
        yield from (Path(parent, file) for file in files if file.lower().endswith(SUFFIXES))


def _open(model: Path, threads: int) -> OrtSession:
    """On the processor, for which int8 is."""
    import onnxruntime

    try:
        return OrtSession(
            onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
        )
    except Exception as error:  # onnxruntime has no class for its errors
        raise OptimizeError(f"{model} can't be opened: {error}") from error


class _RecordingSession(PlainSession):
    """Stands in for a session and remembers what it is asked."""

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
    """Each photo, face or search, and what the service would ask of the model for it. Raises OptimizeError."""
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
            log.warning("%s is left out: %s", path, error)
        names += [str(path)] * (len(recorder.asked) - len(names))
        if len(names) >= MOST:
            break
    if len(names) < least:
        raise OptimizeError(
            f"{ref}: at least {least} {what} are needed to tell, and {len(names)} were found; name more photos"
        )
    return list(zip(names, recorder.asked, strict=True))[:MOST]


def compare(
    models: tuple[Path, Path], threads: int, feeds: Sequence[Tensors]
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """The cosine for each feed, and the median milliseconds of both, asked in turn."""
    sessions = [_open(model, threads) for model in models]
    cosines: list[float] = []
    spent: tuple[list[float], list[float]] = ([], [])
    for feed in (feeds[0], *feeds):  # once more the first, which is slow
        a, b = (_timed(session, feed, ms) for session, ms in zip(sessions, spent, strict=True))
        cosines.append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
    return np.array(cosines[1:]), (statistics.median(spent[0][1:]), statistics.median(spent[1][1:]))


def _timed(session: Session, feed: Tensors, milliseconds: list[float]) -> NDArray[np.float64]:
    """The vector; how long it took goes on the list."""
    started = time.perf_counter()
    (vector, *_) = session.run(feed)
    milliseconds.append((time.perf_counter() - started) * 1000)
    return vector.ravel().astype(np.float64)
