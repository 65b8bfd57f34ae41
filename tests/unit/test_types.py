# SPDX-License-Identifier: AGPL-3.0-only
"""The type checker knows which model a task wants: it refuses another one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SNIPPET = """
from mt_photos_ml.models.store import Store
from mt_photos_ml.photo import Photo
from mt_photos_ml.tasks import clip, ocr
from mt_photos_ml.tasks.models import Models

async def answer(store: Store, models: Models, photo: Photo) -> None:
    async with store.use(models.ocr_detector) as detector, store.use(models.ocr_recogniser) as recogniser:
        ocr.read(photo, detector, recogniser)
    async with store.use(models.face_detector) as other, store.use(models.clip_textual) as textual:
        ocr.read(photo, other, recogniser)
        clip.encode_photo(photo, textual)
"""


def test_a_wrong_model_in_a_task_does_not_pass_the_type_checker(tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(SNIPPET)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        str(tmp_path / "snippet.py"),
    ]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    wrong = [line for line in checked.stdout.splitlines() if ": error:" in line]
    assert len(wrong) == 2, checked.stdout + checked.stderr
    assert (
        'snippet.py:11: error: Argument 2 to "read" has incompatible type "mt_photos_ml.tasks.faces.Detector"'
        in wrong[0]
    )
    assert 'snippet.py:12: error: Argument 2 to "encode_photo" has incompatible type "Textual"' in wrong[1]
