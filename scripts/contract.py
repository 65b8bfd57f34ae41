# SPDX-License-Identifier: AGPL-3.0-only
"""Tests an image as users run it: starts a container, waits until it is healthy and runs tests/contract against its
published port. Prints the container's log on failure; always removes the container."""

import argparse
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .docker import docker
from .upstream import ROOT, Refused

_CLIP, _FACES, _OCR = "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k", "buffalo_l", "PP-OCRv5_mobile"
"""The models that the image uses by default."""
_WEIGHTS = {"detection": "PP-OCRv6_det_small.onnx", "recognition": "PP-OCRv6_rec_small.onnx"}
"""Models in RapidOCR's wheel, used in place of the OCR model."""
_LOG_LINES = 200
ONE_OF_EACH = (
    "test_the_page or test_ping or test_check_describes or test_restart_gives or test_ocr_answers_with_empty"
    " or test_a_photo_gets or test_any_text or test_represent or test_without_the_key or png-16-bit"
    " or (test_faces_in_a_photo_turned_by_exif and 6-JPEG)"
)
"""Selects contract tests by pytest's -k: one of each route, and one that reads text."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.contract", description=__doc__, epilog="Other options go to pytest.", allow_abbrev=False
    )
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--platform", help="platform of the image, such as linux/arm64 in emulation")
    parser.add_argument("--healthy-within", type=float, default=180.0, metavar="SECONDS")
    parser.add_argument("--cache", type=Path, help="folder of models (default: tiny models built for this run)")
    options, words = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the container is removed
    try:
        with contextlib.ExitStack() as stack:
            if (cache := options.cache) is None:
                cache = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
                build_cache(cache)
            platform = [f"--platform={options.platform}"] if options.platform else []
            return _run(options.image, cache.absolute(), words, platform, options.healthy_within)
    except FileNotFoundError as error:
        print(f"contract: {error.filename} was not found", file=sys.stderr)
    except Refused as error:
        print(f"contract: {error}", file=sys.stderr)
    return 1


def build_cache(folder: Path) -> None:
    """Writes tiny models under the names that the image uses, in the layout of the cache."""
    from demo.models import build_clip, build_faces  # only here, because it needs onnx

    build_clip(folder / "clip" / _CLIP)
    build_faces(folder / "facial-recognition" / _FACES)
    wheel = importlib.util.find_spec("rapidocr")
    if wheel is None or wheel.origin is None:
        raise Refused("the OCR models are in RapidOCR's wheel: pip install 'rapidocr>=3.10,<4'")
    for part, weights in _WEIGHTS.items():
        model = folder / "ocr" / _OCR / part / "model.onnx"
        model.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(wheel.origin).parent / "models" / weights, model)


def _run(image: str, cache: Path, words: list[str], platform: list[str], healthy_within: float) -> int:
    """Runs the tests against the image; returns pytest's exit code."""
    key = secrets.token_urlsafe()
    with _started(image, cache, key, platform) as container:
        passed = False
        try:
            _wait(container, healthy_within)
            url = f"http://{docker('port', container, '3003/tcp').splitlines()[0]}"
            command = [sys.executable, "-m", "pytest", "tests/contract", *words]
            where = {"MT_PHOTOS_ML_URL": url, "MT_PHOTOS_ML_KEY": key}
            ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **where}, check=False)
            passed = ended.returncode == 0
            return ended.returncode
        finally:
            if not passed:
                print(f"contract: the log of {image}", file=sys.stderr)
                subprocess.run(["docker", "logs", f"--tail={_LOG_LINES}", container], stdout=sys.stderr, check=False)


@contextlib.contextmanager
def _started(image: str, cache: Path, key: str, platform: list[str]) -> Iterator[str]:
    """Runs a container of the image until the context ends; yields its name."""
    name = f"mt-photos-ml-contract-{secrets.token_hex(4)}"
    options = ["--publish=127.0.0.1::3003", f"--env=API_AUTH_KEY={key}", f"--volume={cache}:/cache"]
    try:
        docker("run", "--detach", f"--name={name}", *platform, *options, image)
        yield name
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], capture_output=True, check=False)


def _wait(container: str, seconds: float) -> None:
    """Waits until Docker's health check reports healthy. Raises Refused."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status, _, health = docker(
            "inspect", "--format={{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}", container
        ).partition(" ")
        if health == "healthy":
            return
        if status != "running":
            raise Refused("the container ended before it was healthy")
        time.sleep(0.5)
    raise Refused(f"the container was not healthy within {seconds:.0f} seconds")


if __name__ == "__main__":
    sys.exit(main())
