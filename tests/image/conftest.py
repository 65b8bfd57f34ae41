# SPDX-License-Identifier: AGPL-3.0-only
"""The image on the stand-in base, tiny models for it, and containers of it with a published port."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import KEY, free_port

sys.path.insert(0, str(Path(__file__).parent))
from standin import build as build_standin

ROOT = Path(__file__).parents[2]
BASE, CHANGED = "mt-photos-ml-standin:v2.5.6", "mt-photos-ml-standin:v2.5.7"
IMAGE = "mt-photos-ml-test:latest"


def docker(*words: str, check: bool = True) -> str:
    """What a docker command prints."""
    ended = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert not check or ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def build(base: str, tag: str) -> None:
    """Our image on this base, by the script that maintainers and CI use."""
    command = [sys.executable, "-m", "scripts.build", "--base", base, "--tag", tag]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@dataclass(frozen=True)
class Container:
    """A running container of the image."""

    name: str
    url: str

    def client(self, key: str | None = KEY) -> httpx.Client:
        headers = {"api-key": key} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=False)

    @property
    def log(self) -> str:
        ended = subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, check=True)
        return ended.stdout + ended.stderr

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", self.name))
        return state

    def processes(self) -> set[str]:
        """The pids in it."""
        return {line.split()[1] for line in docker("top", self.name).splitlines()[1:]}


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


Start = Callable[..., contextlib.AbstractContextManager[Container]]


@pytest.fixture(scope="session")
def image() -> str:
    """The image of the tests."""
    if shutil.which("docker") is None:
        pytest.skip("no docker on this machine")
    build_standin(BASE)
    build(BASE, IMAGE)
    return IMAGE


@pytest.fixture(scope="session")
def start(image: str, cache: Path) -> Start:
    """Starts a container with these settings and options of `docker run`, and waits for its answer."""

    @contextlib.contextmanager
    def started(*options: str, image: str = image, waits: bool = True, **settings: str) -> Iterator[Container]:
        port = free_port()
        name = f"mt-photos-ml-test-{port}"
        variables = [f"--env={name}={value}" for name, value in {"API_AUTH_KEY": KEY, **settings}.items()]
        mounts = [f"--publish=127.0.0.1:{port}:3003", f"--volume={cache}:/cache"]
        docker("run", "--detach", f"--name={name}", *mounts, *variables, *options, image)
        container = Container(name, f"http://127.0.0.1:{port}")
        try:
            if waits:
                until(lambda: _answers(container))
            yield container
        finally:
            docker("rm", "--force", "--volumes", name)

    return started


def _answers(container: Container) -> bool:
    assert container.state["Running"], container.log
    try:
        return httpx.get(f"{container.url}/ping").text == "pong"
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with tiny models under the names that the image uses."""
    from scripts.contract import build_cache

    folder = tmp_path_factory.mktemp("cache")
    build_cache(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)  # a container may run as anybody
    return folder
