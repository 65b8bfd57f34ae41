# SPDX-License-Identifier: AGPL-3.0-only
"""The service under test as its clients see it, an address and a key; and how to start a bare one."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the photo as seen."""

PHOTO_ROUTES = ("/ocr", "/clip/img", "/represent")
URL = os.environ.get("MT_PHOTOS_ML_URL", "").rstrip("/")


@dataclass(frozen=True)
class Face:
    """A face that /represent found."""

    box: Box
    embedding: Vector


@dataclass(frozen=True)
class Service:
    """Where a service is, its key, and a client that knows both."""

    url: str
    key: str
    http: httpx.Client

    def post_photo(self, route: str, photo: bytes, name: str = "photo.jpg", kind: str = "image/jpeg") -> httpx.Response:
        """Uploads the photo under this name and declared content type."""
        return self.http.post(route, files={"file": (name, photo, kind)})

    def result(self, route: str, photo: bytes) -> Any:
        """What the route found in the photo."""
        answer = self.post_photo(route, photo)
        assert (answer.status_code, answer.json().get("msg")) == (200, None)
        return answer.json()["result"]

    def read(self, photo: bytes) -> list[tuple[str, Box]]:
        """The lines of text, and where they are."""
        found = self.result("/ocr", photo)
        boxes = [(float(b["x"]), float(b["y"]), float(b["width"]), float(b["height"])) for b in found["boxes"]]
        return list(zip(found["texts"], boxes, strict=True))

    def see(self, photo: bytes) -> Vector:
        """The embedding of the photo."""
        return np.array(self.result("/clip/img", photo), float)

    def faces(self, photo: bytes) -> list[Face]:
        """The faces, from left to right."""
        found = [(face["facial_area"], face["embedding"]) for face in self.result("/represent", photo)]
        faces = [Face((at["x"], at["y"], at["w"], at["h"]), np.array(numbers)) for at, numbers in found]
        return sorted(faces, key=lambda face: face.box)

    def understand(self, text: str) -> Vector:
        """The embedding of the text."""
        answer = self.http.post("/clip/txt", json={"text": text})
        assert answer.status_code == 200
        return np.array(answer.json()["result"], float)

    @contextlib.contextmanager
    def begun(self, route: str, headers: Mapping[str, str]) -> Iterator[HTTPConnection]:
        """A connection on which a POST's headers have been sent, and of its body nothing yet."""
        address = httpx.URL(self.url)
        with contextlib.closing(HTTPConnection(address.host, address.port or 80, timeout=20)) as connection:
            connection.putrequest("POST", route)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            yield connection


@contextlib.contextmanager
def connected(url: str, key: str) -> Iterator[Service]:
    """The service at this address."""
    with httpx.Client(base_url=url, headers={"api-key": key}, timeout=60, trust_env=False) as http:
        yield Service(url, key, http)


@contextlib.contextmanager
def started(folder: Path, settings: Mapping[str, str]) -> Iterator[Service]:
    """A bare service with these settings and no others, its log in `folder`; it must end well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mt_photos_ml", "serve", "--host", "127.0.0.1", "--port", port]
    log, url = folder / "service.log", f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=bare_environment(settings), stdout=output, stderr=output)
    try:
        with connected(url, settings.get("API_AUTH_KEY", "mt_photos_ai_extra")) as service:
            assert _answers(service, process), f"the service did not start:\n{log.read_text()}"
            yield service
    finally:
        process.terminate()
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
    assert code == 0, f"ended with {code}:\n{log.read_text()}"


def bare_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """These settings, and of this process's environment only what every program needs."""
    return {name: os.environ[name] for name in ("HOME", "PATH", "TMPDIR") if name in os.environ} | dict(settings)


def _answers(service: Service, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            return service.http.get("/ping").status_code == 200
        time.sleep(0.05)
    return False


def cosine(a: Vector, b: Vector) -> float:
    """How alike two embeddings are, 1 being the same."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
