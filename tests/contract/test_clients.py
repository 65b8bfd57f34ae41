# SPDX-License-Identifier: AGPL-3.0-only
"""Real clients: curl, and Node's fetch, because MT Photos runs on Node."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.api import PHOTO_ROUTES, Api
from demo.pictures import colour_photo
from photos import jpeg

NODE, CURL = shutil.which("node"), shutil.which("curl")
REFUSED = {"detail": "Invalid API key"}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clients") / "照片.jpg"
    path.write_bytes(jpeg(colour_photo("red", (320, 240))))
    return path


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_node_is_answered_on_every_route(api: Api, photo: Path) -> None:
    script = str(Path(__file__).with_name("client.mjs"))
    told = json.loads(output(str(NODE), script, api.url, api.key, str(photo)))
    assert told.pop("refused") == {"status": 401, "body": REFUSED}
    assert {answer["status"] for answer in told.values()} == {200}
    for route in PHOTO_ROUTES:
        assert told[route]["body"]["result"] == api.result(route, photo.read_bytes())
    assert told["/check"]["body"]["result"] == "pass"
    assert np.allclose(np.array(told["/clip/txt"]["body"]["result"], float), api.understand("红色"), atol=1e-4)


def curl(api: Api, route: str, key: str, photo: Path) -> tuple[int, Any]:
    """Status and JSON of an upload with curl -F."""
    options = ("--silent", "--show-error", "--noproxy", "*", "--write-out", "\n%{http_code}")
    told = output(str(CURL), *options, "-H", f"api-key: {key}", "-F", f"file=@{photo}", api.url + route)
    body, status = told.rsplit("\n", 1)
    return int(status), json.loads(body)


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
@pytest.mark.parametrize("route", PHOTO_ROUTES)
def test_curl_is_answered(api: Api, photo: Path, route: str) -> None:
    status, told = curl(api, route, api.key, photo)
    assert (status, told["result"]) == (200, api.result(route, photo.read_bytes()))


@pytest.mark.skipif(CURL is None, reason="curl is not installed")
@pytest.mark.parametrize("size", [1000, 20_000_000])
def test_curl_with_a_wrong_key_gets_401_whatever_it_sends(api: Api, tmp_path: Path, size: int) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(bytes(size))
    assert curl(api, "/ocr", "wrong", path) == (401, REFUSED)
