# SPDX-License-Identifier: AGPL-3.0-only
"""A test network: machines are network namespaces on a bridge, and can be unplugged."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Machine:
    """A network namespace. cable: the bridge's end of its link. started: processes that the test started in it."""

    name: str
    address: str
    cable: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(
        self, command: Sequence[str | Path], environment: Mapping[str, str], folder: Path, log: str
    ) -> subprocess.Popen[bytes]:
        """Starts a process in it; appends its output to a log in the folder."""
        with (folder / log).open("ab") as output:
            inside: list[str | Path] = ["ip", "netns", "exec", self.name, *command]
            self.started.append(subprocess.Popen(inside, env=environment, cwd=folder, stdout=output, stderr=output))
        return self.started[-1]

    @property
    def pids(self) -> list[int]:
        """The process ids of everything that runs in it."""
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]

    def signal(self, number: int) -> None:
        """Sends a signal to everything that runs in it."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Network:
    """Machines on a bridge, which belongs to the first one. The test can reach all of them."""

    def __init__(self) -> None:
        self._name, self._subnet = f"mt{os.getpid()}", f"198.18.{os.getpid() % 256}"
        self._machines = list[Machine]()
        self._resolv = Path("/etc/netns", f"{self._name}m0")

    @property
    def hub(self) -> Machine:
        """The first machine."""
        return self._machines[0]

    def close(self) -> None:
        """Kills everything that runs on the machines and removes the network."""
        for machine in self._machines:
            with contextlib.suppress(subprocess.CalledProcessError):
                machine.signal(signal.SIGKILL)
                for process in machine.started:
                    process.wait()
                ip("netns", "delete", machine.name)
        shutil.rmtree(self._resolv, ignore_errors=True)

    def machine(self) -> Machine:
        """Adds a machine."""
        number = len(self._machines)
        machine = Machine(f"{self._name}m{number}", f"{self._subnet}.{10 + number}", f"m{number}")
        ip("netns", "add", machine.name)
        self._machines.append(machine)
        if number == 0:
            self._lay_bridge(machine)
        else:
            hub = self._machines[0].name
            ip("-n", machine.name, "link", "add", "eth0", "type", "veth", "peer", "name", machine.cable, "netns", hub)
            ip("-n", hub, "link", "set", machine.cable, "master", "bridge", "up")
            ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", "eth0")
            ip("-n", machine.name, "link", "set", "eth0", "up")
        ip("-n", machine.name, "link", "set", "lo", "up")
        return machine

    def _lay_bridge(self, hub: Machine) -> None:
        self._resolv.mkdir(parents=True)
        # `ip netns exec` mounts this as /etc/resolv.conf
        (self._resolv / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        ip("-n", hub.name, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub.name, "address", "add", f"{hub.address}/24", "dev", "bridge")
        ip("-n", hub.name, "link", "set", "bridge", "up")
        ip("link", "add", self._name, "type", "veth", "peer", "name", "test", "netns", hub.name)
        ip("-n", hub.name, "link", "set", "test", "master", "bridge", "up")
        ip("address", "add", f"{self._subnet}.1/24", "dev", self._name)
        ip("link", "set", self._name, "up")

    def plug(self, machine: Machine) -> None:
        ip("-n", self._machines[0].name, "link", "set", machine.cable, "up")

    def unplug(self, machine: Machine) -> None:
        ip("-n", self._machines[0].name, "link", "set", machine.cable, "down")
