# SPDX-License-Identifier: AGPL-3.0-only
"""Starts the services that are compared: ours as a process or a container, and the straightforward one."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from bench import measure
from bench.floor import OCR_MODELS
from bench.measure import CHECK, KEY, Client, Request, photo_request, text_request
from bench.photos import CLIP, FACES, JPEG_12, OCR, PAGE_12, photo

ROOT = Path(__file__).parents[1]
SERVICES = ("ours", "straightforward")
_KEPT = {"PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DOCKER_HOST"}  # variables that a service inherits
_START_SECONDS, _PREPARATION_SECONDS, _MODELS = 60.0, 600.0, 6


@dataclass(frozen=True)
class Service:
    """A running service. start_seconds: to its first /check. container: its name if it runs in one."""

    client: Client
    pid: int
    log: Path
    start_seconds: float
    container: str

    def send(self, requests: Sequence[Request], clients: int = 1) -> tuple[float, list[float]]:
        return measure.send(self.client.port, requests, clients)

    def memory(self) -> measure.Memory:
        """The memory of all its processes."""
        if not self.container:
            return measure.memory(measure.family(self.pid))
        command = ["docker", "top", self.container, "-eo", "pid"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return measure.memory([int(pid) for pid in listed.split()[1:]])

    def loads(self) -> dict[str, float]:
        """Seconds that each model took to load, from our service's log."""
        return {part: float(seconds) for part, seconds in re.findall(r"loaded (\S+) in (\S+) s", self.log.read_text())}


@dataclass(frozen=True)
class Launcher:
    """Starts services. settings: the variables that name the cache and its models. image: runs ours in a container."""

    settings: Mapping[str, str]
    logs: Path
    image: str = ""

    @property
    def cache(self) -> Path:
        return Path(self.settings["MACHINE_LEARNING_CACHE_FOLDER"])

    @contextmanager
    def run(self, who: str, settings: Mapping[str, str] | None = None) -> Iterator[Service]:
        """Runs one of SERVICES. It unloads no idle model and downloads nothing."""
        fixed = {"API_AUTH_KEY": KEY, "MACHINE_LEARNING_MODEL_TTL": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
        variables = {**fixed, **self.settings, **(settings or {})}
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = int(listening.getsockname()[1])
        container = f"mt-photos-ml-bench-{secrets.token_hex(4)}" if self.image and who == "ours" else ""
        if container:
            command = self._container(container, port, variables)
        elif who == "ours":
            command = [sys.executable, "-m", "mt_photos_ml", "serve", "--host=127.0.0.1", f"--port={port}"]
        else:
            command = [sys.executable, "-m", "bench.straightforward", str(port)]
        kept = {name: value for name, value in os.environ.items() if name in _KEPT}
        environment = {**kept, "PYTHONPATH": f"{ROOT / 'overlay'}:{ROOT}", **variables}
        self.logs.mkdir(parents=True, exist_ok=True)
        log, started = self.logs / f"{who}.log", time.perf_counter()
        with (
            closing(Client(port)) as client,
            log.open("wb") as output,
            subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process,
        ):
            try:
                _wait_for_check(port, process, log)
                yield Service(client, process.pid, log, time.perf_counter() - started, container)
            finally:
                process.terminate()  # `docker run` forwards the signal
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                process.kill()
                if container:
                    subprocess.run(["docker", "rm", "--force", "--volumes", container], capture_output=True)

    @contextmanager
    def run_all(self, names: Sequence[str], settings: Mapping[str, str] | None = None) -> Iterator[dict[str, Service]]:
        """Runs the services of these names and loads all their models."""
        with ExitStack() as ended:
            services = {who: ended.enter_context(self.run(who, settings)) for who in names}
            for service in services.values():
                service.send(list(steps().values()))
            yield services

    def prepared(self) -> bool:
        """Whether our service has prepared all models."""
        return len(list(self.cache.glob("*/*/*/prepared/[!.]*/record.json"))) >= _MODELS

    def prepare(self) -> dict[str, float]:
        """Makes our service prepare all models again. Returns the seconds that each took to load before that."""
        for folder in self.cache.glob("*/*/*/prepared"):
            shutil.rmtree(folder, ignore_errors=True)
        with self.run_all(["ours"]) as services:
            loads, end = services["ours"].loads(), time.monotonic() + _PREPARATION_SECONDS
            while not self.prepared():
                assert time.monotonic() < end, "not all models were prepared"
                time.sleep(0.5)
        return loads

    def _container(self, name: str, port: int, variables: Mapping[str, str]) -> list[str]:
        """The command that runs the container."""
        for kind, weights in OCR_MODELS.items():  # the wheel in the image may carry others
            model = self.cache / "ocr/PP-OCRv6_small" / kind / "model.onnx"
            if not model.exists():  # a new file would be prepared again
                model.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(weights, model)
        variables = {**variables, "MACHINE_LEARNING_CACHE_FOLDER": "/cache", "OCR_MODEL_NAME": "PP-OCRv6_small"}
        options = [f"--publish=127.0.0.1:{port}:3003", f"--volume={self.cache}:/cache"]
        options += [f"--env={key}={value}" for key, value in variables.items()]
        return ["docker", "run", f"--name={name}", *options, self.image]


def steps() -> dict[str, Request]:
    """Requests that together load all models, by what they load."""
    return {
        "CLIP, photos": photo_request(CLIP, photo(JPEG_12)),
        "CLIP, text": text_request("机场的飞机"),
        "faces": photo_request(FACES, photo(JPEG_12)),
        "OCR": photo_request(OCR, photo(PAGE_12)),
    }


def _wait_for_check(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.perf_counter() + _START_SECONDS
    while time.perf_counter() < end and process.poll() is None:
        with suppress(OSError, HTTPException), closing(Client(port)) as client:
            client.ask(CHECK)
            return
        time.sleep(0.003)
    raise RuntimeError(f"the service did not start:\n{log.read_text()}")
