# SPDX-License-Identifier: AGPL-3.0-only
"""Runs the service on a machine of the test network, with a chosen speed."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scale.network import Machine
from service import KEY, answers, environment, until

_PORT = 3003
_SLOW = Path(__file__).with_name("slow")


@dataclass
class Replica:
    """The service on a machine. photos: how many it processes at once. waiting: how many may wait."""

    machine: Machine
    folder: Path
    settings: Mapping[str, str]
    photos: int = 2
    waiting: int = 100
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"http://{self.machine.address}:{_PORT}"

    @property
    def words(self) -> str:
        """Its value of MACHINE_n in .env."""
        return f"{self.machine.address}:{_PORT} maxconn {self.photos + 1}"

    @property
    def parent(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    @property
    def worker(self) -> int:
        """The pid of the worker process, a child of `parent`; 0 if there is none."""
        children = Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def pace(self, seconds: float | str) -> None:
        """Makes each photo take this long; with a value that is not a number, photos fail."""
        (self.folder / "pace").write_text(str(seconds))

    def begin(self) -> None:
        slow = {"SLOW_PACE": str(self.folder / "pace"), "SLOW_WAITING": str(self.waiting)}
        ours = {"API_AUTH_KEY": KEY, "MACHINE_LEARNING_REQUEST_THREADS": str(self.photos), "PREPARE_MODELS": "false"}
        given = environment({**ours, **slow, **self.settings})
        given["PYTHONPATH"] += f":{_SLOW}"
        command: list[str | Path] = [sys.executable, "-m", "mt_photos_ml", "serve", "--port", str(_PORT)]
        self.process = self.machine.run(command, given, self.folder, "service.log")

    def start(self) -> None:
        """Starts the service if it is not running, and waits until it answers."""
        if self.process is None or self.process.poll() is not None:
            self.begin()
        until(lambda: answers(f"{self.url}/ping", 1))
