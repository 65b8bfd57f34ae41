# SPDX-License-Identifier: AGPL-3.0-only
"""Starts the services that are compared: ours as a process or a container, and the straightforward one."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

from bench.load import CHECK, Client
from bench.measure import family

ROOT = Path(__file__).parents[1]
_OURS = ("API_AUTH_KEY", "HTTP_PORT", "TASKS", "MAX_UPLOAD_MB", "HF_ENDPOINT", "IMMICH_", "OCR_", "CLIP_", "FACE_")
_PATIENCE = 60.0
OCR = "PP-OCRv6_small"
_VERSIONS = """
import platform, cv2, numpy, onnxruntime, PIL
for name, version in (
    ("Python", platform.python_version()), ("onnxruntime", onnxruntime.__version__), ("Pillow", PIL.__version__),
    ("OpenCV", cv2.__version__), ("numpy", numpy.__version__),
):
    print(name, version)
"""


@dataclass(frozen=True)
class Service:
    """One that runs. log: what it has logged so far. pids: its processes. start: seconds to its first /check."""

    port: int
    log: Callable[[], str]
    pids: Callable[[], list[int]]
    start: float


@dataclass(frozen=True)
class Launcher:
    """Starts services on the models in the folder `cache`. settings: the variables that name them.

    python: the interpreter that runs ours. image: runs ours as a container of this image instead.
    """

    cache: Path
    logs: Path
    settings: Mapping[str, str]
    python: str = sys.executable
    image: str | None = None

    def straightforward(self, settings: Mapping[str, str] | None = None) -> AbstractContextManager[Service]:
        return self._process([sys.executable, "-m", "bench.straightforward"], "straightforward", settings or {})

    def ours(self, settings: Mapping[str, str] | None = None) -> AbstractContextManager[Service]:
        if self.image:
            return self._container(self.image, settings or {})
        return self._process([self.python, "-m", "mt_photos_ml", "serve", "--host=127.0.0.1"], "ours", settings or {})

    def versions(self) -> dict[str, str]:
        """What ours runs on."""
        if self.image:
            said = _docker("run", "--rm", "--entrypoint=python", self.image, "-c", _VERSIONS)
        else:
            said = subprocess.run([self.python, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout
        versions = dict(line.split() for line in said.strip().splitlines())
        return ({"image": self.image} if self.image else {}) | versions

    @contextmanager
    def _process(self, command: list[str], name: str, settings: Mapping[str, str]) -> Iterator[Service]:
        port, log = _free_port(), self.logs / f"{name}.log"
        self.logs.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith((*_OURS, "MACHINE_LEARNING_"))}
        variables = {**kept, "PYTHONPATH": f"{ROOT / 'overlay'}:{ROOT}", **self._settings(), **settings}
        with log.open("wb") as output:
            started = time.perf_counter()
            process = subprocess.Popen([*command, f"--port={port}"], env=variables, stdout=output, stderr=output)
        try:
            ready = _until_checked(port, lambda: process.poll() is None, log.read_text)
            yield Service(port, log.read_text, lambda: family(process.pid), ready - started)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @contextmanager
    def _container(self, image: str, settings: Mapping[str, str]) -> Iterator[Service]:
        port, name = _free_port(), f"mt-photos-ml-bench-{secrets.token_hex(4)}"
        variables = {**self._settings(), **settings, "MACHINE_LEARNING_CACHE_FOLDER": "/cache", "OCR_MODEL_NAME": OCR}
        self._place_ocr()
        mounts = [f"--publish=127.0.0.1:{port}:3003", f"--volume={self.cache}:/cache"]
        words = ["--detach", f"--name={name}", *mounts, *(f"--env={key}={value}" for key, value in variables.items())]
        started = time.perf_counter()
        _docker("run", *words, image)
        try:
            ready = _until_checked(port, lambda: "true" in _docker("inspect", "-f={{.State.Running}}", name), str)

            def pids() -> list[int]:
                return [int(pid) for pid in _docker("top", name, "-eo", "pid").split()[1:]]

            yield Service(port, lambda: _docker("logs", name), pids, ready - started)
        finally:
            _docker("rm", "--force", "--volumes", name)

    def _settings(self) -> dict[str, str]:
        """Of all services: no model is dropped while others are measured, and nothing is downloaded."""
        return {"MACHINE_LEARNING_MODEL_TTL": "0", "HF_ENDPOINT": "http://127.0.0.1:9", **self.settings}

    def _place_ocr(self) -> None:
        """RapidOCR's weights where the image looks for them: its own wheel may carry others."""
        for kind, weights in ocr_weights().items():
            model = self.cache / "ocr" / OCR / kind / "model.onnx"
            if not model.exists():
                model.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(weights, model)


def ocr_weights() -> dict[str, Path]:
    """The OCR model's files in RapidOCR's wheel, by kind."""
    wheel = find_spec("rapidocr")
    if wheel is None or wheel.origin is None:
        raise RuntimeError("RapidOCR is not installed here: pip install 'rapidocr>=3.10,<4'")
    folder = Path(wheel.origin).parent / "models"
    return {"detection": folder / "PP-OCRv6_det_small.onnx", "recognition": folder / "PP-OCRv6_rec_small.onnx"}


def _until_checked(port: int, runs: Callable[[], bool], log: Callable[[], str]) -> float:
    """The time (perf_counter) at which the first /check was answered."""
    deadline = time.perf_counter() + _PATIENCE
    while time.perf_counter() < deadline and runs():
        with suppress(OSError, HTTPException), Client(port) as client:
            client.ask(CHECK)
            return time.perf_counter()
        time.sleep(0.003)
    raise RuntimeError(f"the service did not start:\n{log()}")


def _docker(*words: str) -> str:
    ended = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"docker {words[0]}: {ended.stderr.strip()}")
    return (ended.stdout + ended.stderr).strip()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
