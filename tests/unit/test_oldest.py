# SPDX-License-Identifier: AGPL-3.0-only
"""The service on the oldest base image's libraries: every module imports, and each route answers as it should.
tests/image runs the whole contract on them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mt_photos_ml.runtime.ort import DOUBLE
from scripts.contract import ONE_OF_EACH, build_cache
from service import KEY, environment, running

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-oldest" / "bin" / "python"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-oldest, which `make test` makes")

IMPORT = """
import importlib, pkgutil, mt_photos_ml
for module in pkgutil.walk_packages(mt_photos_ml.__path__, "mt_photos_ml."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_every_module_imports_on_the_oldest_libraries() -> None:
    ended = subprocess.run([PYTHON, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=120)
    modules = {"mt_photos_ml.photo", "mt_photos_ml.runtime.npu", "mt_photos_ml.int8.optimize"}
    assert modules <= set(ended.stdout.splitlines())


OPEN = """
import pathlib, sys
from mt_photos_ml.runtime import ModelDamaged
from mt_photos_ml.runtime.ort import OrtRuntime

for path in sys.argv[1:]:
    try:
        OrtRuntime(1).open(pathlib.Path(path))
    except ModelDamaged:
        print("damaged")
"""


def test_a_damaged_model_file_raises_model_damaged(tmp_path: Path) -> None:
    contents = {"empty": b"", "zeros": bytes(1000), "error page": b"<html>404</html>", "cut": DOUBLE[:40]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in (*contents, "missing")]
    command = [str(PYTHON), "-c", OPEN, *paths]
    ended = subprocess.run(command, env=environment({}), capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.split() == ["damaged"] * 5


def test_every_route_keeps_the_contract_on_the_oldest_libraries(tmp_path: Path) -> None:
    build_cache(tmp_path / "cache")
    settings = {"MACHINE_LEARNING_CACHE_FOLDER": str(tmp_path / "cache"), "OCR_MODEL_NAME": "PP-OCRv5_mobile"}
    with running(tmp_path, settings, str(PYTHON)) as service:
        command = [sys.executable, "-m", "pytest", "tests/contract", "-q", "-p", "no:xdist", "-k", ONE_OF_EACH]
        alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        there = {**alone, "MT_PHOTOS_ML_URL": service.url, "MT_PHOTOS_ML_KEY": KEY}
        ended = subprocess.run(command, cwd=ROOT, env=there, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout[-8000:] + service.log.read_text()[-2000:]
    (closing,) = re.findall(r"^(\d+) passed, \d+ deselected", ended.stdout, re.MULTILINE)
    assert int(closing) > 50, "none may be skipped"
