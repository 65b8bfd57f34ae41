# SPDX-License-Identifier: AGPL-3.0-only
"""A source of models that builds the demo's models instead of downloading them."""

import time
from collections.abc import Sequence
from pathlib import Path

from demo.models import build_clip, build_faces
from mt_photos_ml.models.catalog import ModelRef
from mt_photos_ml.models.hub import DownloadError, Hub
from mt_photos_ml.models.loader import ModelKey
from mt_photos_ml.tasks import clip, faces

VISUAL = ModelKey(ModelRef("clip", "mine", "visual"), clip.Visual.load)
TEXTUAL = ModelKey(ModelRef("clip", "mine", "textual"), clip.Textual.load)
DETECTION = ModelKey(ModelRef("facial-recognition", "mine", "detection"), faces.Detector.load)


class Folder(Hub):
    """A hub that builds models. failure: the error of each download, if any. fetched, invalidated: what was asked."""

    def __init__(self, cache: Path, *, can_mend: bool = True, seconds: float = 0) -> None:
        """can_mend: whether damaged files can be downloaded again. seconds: how long a download takes."""
        super().__init__(cache)
        self.can_mend, self.seconds = can_mend, seconds
        self.failure = ""
        self.fetched: list[ModelRef] = []
        self.invalidated: list[str] = []

    def fetch(self, ref: ModelRef) -> Path:
        self.fetched.append(ref)
        time.sleep(self.seconds)
        if self.failure:
            raise DownloadError(self.failure)
        if ref.missing(self.cache):
            (build_clip if ref.group == "clip" else build_faces)(ref.folder(self.cache))
        return ref.path(self.cache)

    def invalidate(self, ref: ModelRef, files: Sequence[str]) -> bool:
        self.invalidated += files
        if self.can_mend:
            for file in files:
                (ref.folder(self.cache) / file).unlink()
        return self.can_mend
