# SPDX-License-Identifier: AGPL-3.0-only
"""Runs the real service as a process, for tests that talk to it over a socket."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

KEY = "the key of the tests"
ON_DEVICE: dict[str, str] = {}
"""The settings of a run in which every task is on a device."""

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Service:
    """A running service. log: its log file."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process id of the worker, which serves; 0 if there is none. `process` is its parent."""
        parent = self.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return int(children[0]) if children else 0

    def client(self, key: str | None = KEY) -> httpx.Client:
        headers = {"api-key": key} if key else {}
        unlimited = httpx.Limits(max_connections=None)
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, limits=unlimited, verify=False)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these settings of the service and no others."""
    ours = ("API_AUTH_KEY", "HTTP_PORT", "TASKS", "MAX_UPLOAD_MB", "HF_ENDPOINT", "IMMICH_LOG_LEVEL", "OCR_", "CLIP_")
    prefixes = (*ours, "FACE_", "INT8_", "MACHINE_LEARNING_", "PREPARE_", "INSTANCE_", "DRAIN", "QUEUE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, "PYTHONPATH": str(_ROOT / "overlay"), **ON_DEVICE, **settings}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def run_command(
    settings: Mapping[str, str], *arguments: object, answer: str = "", encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """Runs `mt-photos-ml …` with these settings. answer: its standard input. encoding: the terminal's."""
    command = [sys.executable, "-m", "mt_photos_ml", *map(str, arguments)]
    given = environment(settings)
    return subprocess.run(command, env=given, input=answer, capture_output=True, encoding=encoding, timeout=60)


@contextlib.contextmanager
def running(
    folder: Path,
    settings: Mapping[str, str],
    python: str = sys.executable,
    host: str | None = "127.0.0.1",
    key: str | None = KEY,
    wrapper: Sequence[str] = (),
) -> Iterator[Service]:
    """Runs the service with these settings until the context ends. folder: for its log. python: the interpreter.

    host: the address to listen on. key: used if the settings name none. None leaves either out. wrapper: a command
    that runs the service, such as setsid.
    """
    port, log = free_port(), folder / "service.log"
    command = [*wrapper, python, "-m", "mt_photos_ml", "serve", "--port", str(port)]
    command += ["--host", host] if host else []
    with log.open("wb") as output:
        given = environment({**({"API_AUTH_KEY": key} if key else {}), **settings})
        process = subprocess.Popen(command, env=given, stdout=output, stderr=output)
    service = Service(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait(service)
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(service: Service) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and service.process.poll() is None:
        if answers(f"{service.url}/ping"):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the service did not start:\n{service.log.read_text()}")


def answers(url: str, seconds: float = 5) -> bool:
    """Whether a GET of this address is answered 200 within so many seconds."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=seconds).status_code == 200
    return False


def post(service: Service, route: str, photo: bytes) -> httpx.Response:
    """Sends a photo to a route."""
    with service.client() as client:
        return client.post(route, files={"file": photo})


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Waits until `true` holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"still not true after {seconds} s"
        time.sleep(0.05)


def loaded(client: httpx.Client) -> list[str]:
    """The models that /check says are in memory."""
    names: list[str] = client.post("/check").json()["loaded"]
    return names


def unload(client: httpx.Client) -> None:
    """Unloads the models that are not in use, as the service does after an idle minute."""
    for name in loaded(client):
        group, _, type = name.split("/")
        task = "faces" if group == "facial-recognition" else group
        assert client.post(f"/api/models/{task}/{type}/unload").status_code in (200, 409)


def is_planned(service: Service) -> bool:
    """Whether the devices have planned all shapes of the loaded models, which takes memory."""
    with service.client() as client:
        models = client.get("/api/status").json()["models"]
    return not any(model["plans"] and model["plans"]["waiting"] for model in models)


def anonymous_mb(pid: int) -> float:
    """Megabytes of a process's anonymous memory (RssAnon)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))
