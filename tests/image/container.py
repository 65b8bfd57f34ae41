# SPDX-License-Identifier: AGPL-3.0-only
"""Builds and inspects containers of the image under test, with the docker command."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from image import standin
from service import KEY

ROOT = Path(__file__).parents[2]
BASE = standin.name("v2.5.6")
IMAGE = "mt-photos-ml-test:latest"
HARDENED = ("--user=1000:1000", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
START: list[str] = json.loads((ROOT / "Dockerfile").read_text().rpartition("\nCMD ")[2])
"""The image's command, with which tests also start the service without Docker."""


def docker(*words: str, check: bool = True) -> str:
    """Runs a docker command and returns its output."""
    ended = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert not check or ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def build(base: str, tag: str, platform: str | None = None) -> None:
    """Builds our image on this base, with the script that maintainers and CI use."""
    command = [sys.executable, "-m", "scripts.build", "--base", base, "--tag", tag]
    command += ["--platform", platform] if platform else []
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def passes(*command: str, **settings: str) -> None:
    """Runs the contract tests with this command, checks that they pass and prints pytest's last line."""
    given = {**os.environ, **settings}
    ended = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=given, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr
    print(ended.stdout.strip().splitlines()[-1])


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
        """The pids of its processes, on the host."""
        return {line.split()[1] for line in docker("top", self.name).splitlines()[1:]}


Start = Callable[..., contextlib.AbstractContextManager[Container]]
"""Starts a container: options of `docker run`, settings as keywords."""
