# SPDX-License-Identifier: AGPL-3.0-only
"""`python -m demo FOLDER`: builds the tiny models in FOLDER and serves with them; every route answers offline."""

import os
import sys
from pathlib import Path

from mt_photos_ml.cli import main

from .models import build_clip, build_faces

CLIP, FACES = "demo-colours", "demo-faces"


def environment(folder: Path) -> dict[str, str]:
    """The variables that make the service use the demo's models."""
    return {
        "MACHINE_LEARNING_CACHE_FOLDER": str(folder),
        "CLIP_VISUAL_MODEL_NAME": CLIP,
        "CLIP_TEXTUAL_MODEL_NAME": CLIP,
        "FACE_DETECTION_MODEL_NAME": FACES,
        "FACE_RECOGNITION_MODEL_NAME": FACES,
    }


def build(folder: Path) -> Path:
    """Writes the models of the demo in the layout of the cache. Returns the folder."""
    build_clip(folder / "clip" / CLIP)
    build_faces(folder / "facial-recognition" / FACES)
    return folder


if __name__ == "__main__":
    build(Path(sys.argv[1]))
    os.environ.update(environment(Path(sys.argv[1]).absolute()))
    main(["serve", *sys.argv[2:]])
