# SPDX-License-Identifier: AGPL-3.0-only
"""Starts the services that are compared: ours as a process or a container, and the straightforward one."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

from bench.load import CHECK, KEY, Client
from bench.measure import family

ROOT = Path(__file__).parents[1]
OCR = "PP-OCRv6_small"
_WHEEL = find_spec("rapidocr")
if _WHEEL is None or _WHEEL.origin is None:
    raise RuntimeError("RapidOCR is not installed here: pip install 'rapidocr>=3.10,<4'")
OCR_MODELS = {
    kind: Path(_WHEEL.origin).parent / f"models/PP-OCRv6_{kind[:3]}_small.onnx" for kind in ("detection", "recognition")
}
"""Its files in RapidOCR's wheel, by kind."""
_KEPT = {"PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DOCKER_HOST"}  # variables; the service's settings are not
_TIMEOUT_SECONDS = 60.0
_VERSIONS = """
import platform, cv2, numpy, onnxruntime, PIL
print("Python", platform.python_version())
for name, module in {"onnxruntime": onnxruntime, "Pillow": PIL, "OpenCV": cv2, "numpy": numpy}.items():
    print(name, module.__version__)
"""


@dataclass(frozen=True)
class Service:
    """One that runs. log: what it has logged so far. pids: its processes. start_seconds: to its first /check."""

    port: int
    log: Callable[[], str]
    pids: Callable[[], list[int]]
    start_seconds: float


@dataclass(frozen=True)
class Launcher:
    """Starts services with the models in the folder `cache`. settings: the variables that name them.

    python: the interpreter that runs ours. image: runs ours as a container of this image instead.
    """

    cache: Path
    logs: Path
    settings: Mapping[str, str]
    python: str = sys.executable
    image: str | None = None

    @contextmanager
    def run(self, who: str, settings: Mapping[str, str] | None = None) -> Iterator[Service]:
        """who: "ours" or "straightforward". No model is dropped while others are measured, nothing is downloaded."""
        fixed = {"API_AUTH_KEY": KEY, "MACHINE_LEARNING_MODEL_TTL": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
        variables = {**fixed, **self.settings, **(settings or {})}
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = int(listening.getsockname()[1])
        container = f"mt-photos-ml-bench-{secrets.token_hex(4)}" if self.image and who == "ours" else ""
        if container:
            command = self._container(container, port, variables)
        elif who == "ours":
            command = [self.python, "-m", "mt_photos_ml", "serve", "--host=127.0.0.1", f"--port={port}"]
        else:
            command = [sys.executable, "-m", "bench.straightforward", str(port)]
        kept = {name: value for name, value in os.environ.items() if name in _KEPT}
        environment = {**kept, "PYTHONPATH": f"{ROOT / 'overlay'}:{ROOT}", **variables}
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{who}.log"
        with log.open("wb") as output:
            started = time.perf_counter()
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            seconds = _wait_for_check(port, process, log) - started
            pids = partial(_pids_in, container) if container else partial(family, process.pid)
            yield Service(port, log.read_text, pids, seconds)
        finally:
            process.terminate()  # `docker run` hands the signal on
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if container:
                subprocess.run(["docker", "rm", "--force", "--volumes", container], capture_output=True, check=False)

    def versions(self) -> dict[str, str]:
        """What ours runs on."""
        container = ["docker", "run", "--rm", "--entrypoint=python", self.image] if self.image else [self.python]
        said = subprocess.run([*container, "-c", _VERSIONS], capture_output=True, text=True, check=True).stdout
        return ({"image": self.image} if self.image else {}) | dict(line.split() for line in said.splitlines() if line)

    def _container(self, name: str, port: int, variables: Mapping[str, str]) -> list[str]:
        """The command that runs it."""
        for kind, weights in OCR_MODELS.items():  # the wheel in the image may carry others
            model = self.cache / "ocr" / OCR / kind / "model.onnx"
            if not model.exists():
                model.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(weights, model)
        variables = {**variables, "MACHINE_LEARNING_CACHE_FOLDER": "/cache", "OCR_MODEL_NAME": OCR}
        options = [f"--publish=127.0.0.1:{port}:3003", f"--volume={self.cache}:/cache"]
        options += [f"--env={key}={value}" for key, value in variables.items()]
        return ["docker", "run", f"--name={name}", *options, str(self.image)]


def _pids_in(container: str) -> list[int]:
    command = ["docker", "top", container, "-eo", "pid"]
    return list(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1:]))


def _wait_for_check(port: int, process: subprocess.Popen[bytes], log: Path) -> float:
    """The time (perf_counter) at which the first /check was answered."""
    end = time.perf_counter() + _TIMEOUT_SECONDS
    while time.perf_counter() < end and process.poll() is None:
        with suppress(OSError, HTTPException), Client(port) as client:
            client.ask(CHECK)
            return time.perf_counter()
        time.sleep(0.003)
    raise RuntimeError(f"the service did not start:\n{log.read_text()}")
