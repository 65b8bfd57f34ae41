# SPDX-License-Identifier: AGPL-3.0-only
"""A client of the API: its address, its key, and a method for each route."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the photo as seen."""

PHOTO_ROUTES = ("/ocr", "/clip/img", "/represent")
URL = os.environ.get("MT_PHOTOS_ML_URL", "").rstrip("/")
"""A service that is already running; if empty, the tests start one."""


@dataclass(frozen=True)
class Face:
    """A face that /represent found."""

    box: Box
    embedding: Vector


@dataclass(frozen=True)
class Api:
    """The address of the service, its key, and a client that sends the key."""

    url: str
    key: str
    http: httpx.Client

    def post_photo(self, route: str, photo: bytes, name: str = "photo.jpg", kind: str = "image/jpeg") -> httpx.Response:
        """Uploads the photo under this name and declared content type."""
        return self.http.post(route, files={"file": (name, photo, kind)})

    def result(self, route: str, photo: bytes) -> Any:
        """The result of the route for the photo."""
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
        """A connection on which the headers of a POST have been sent, but nothing of its body."""
        address = httpx.URL(self.url)
        with contextlib.closing(HTTPConnection(address.host, address.port or 80, timeout=20)) as connection:
            connection.putrequest("POST", route)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            yield connection


@contextlib.contextmanager
def connected(url: str, key: str) -> Iterator[Api]:
    """The API at this address. Its timeout is long because OCR takes a minute on an emulated machine."""
    with httpx.Client(base_url=url, headers={"api-key": key}, timeout=300, trust_env=False) as http:
        yield Api(url, key, http)


def cosine(a: Vector, b: Vector) -> float:
    """The cosine similarity of two embeddings; 1 if they are the same."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
