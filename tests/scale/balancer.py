# SPDX-License-Identifier: AGPL-3.0-only
"""Runs HAProxy with the configuration in deploy/haproxy, on a machine of the test network."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from demo.__main__ import CLIP
from scale.network import Machine
from scale.replicas import Replica
from service import KEY, until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
_NAME = "replicas.test"


@dataclass(frozen=True)
class Balancer:
    """A running HAProxy."""

    machine: Machine

    @property
    def url(self) -> str:
        return f"http://{self.machine.address}:8061"

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all series with these labels."""
        text = httpx.get(f"http://{self.machine.address}:8404/metrics").text
        lines = re.findall(rf"^haproxy_{name}{{(.*)}} (\d+)", text, re.MULTILINE)
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        return sum(float(value) for given, value in lines if wanted <= {*given.split(",")})

    def sent_to(self, server: str) -> int:
        """How many photos it has sent to a machine."""
        return int(self.metric("server_sessions_total", proxy="photos", server=server))

    def up(self) -> int:
        """How many machines HAProxy considers up, for photos and for searches."""
        return min(int(self.metric("server_status", proxy=proxy, state="UP")) for proxy in ("photos", "searches"))

    def client(self, key: str = KEY) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"api-key": key}, timeout=100)


@contextlib.contextmanager
def balancing(machine: Machine, folder: Path, *words: str, **variables: str) -> Iterator[Balancer]:
    """Runs HAProxy with these values of MACHINE_1 and following. variables: further environment variables."""
    machines = {f"MACHINE_{number}": word for number, word in enumerate(words, 1)}
    given = {**os.environ, "API_AUTH_KEY": KEY, "CLIP_VISUAL_MODEL_NAME": CLIP, **machines, **variables}
    process = machine.run(["haproxy", "-db", "-f", CONFIGURATION], given, folder, "haproxy.log")
    balancer = Balancer(machine)

    def listens() -> bool:
        assert process.poll() is None, (folder / "haproxy.log").read_text()
        with contextlib.suppress(httpx.TransportError):
            return "HAProxy is starting" not in httpx.get(f"{balancer.url}/ping").text
        return False

    with _until_the_end(process):
        until(listens)
        yield balancer


@contextlib.contextmanager
def balancing_by_name(machine: Machine, folder: Path, replicas: Sequence[Replica]) -> Iterator[Balancer]:
    """Runs HAProxy with replicas that it finds by DNS, as in a cluster."""
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{replica.machine.address} {_NAME}\n" for replica in replicas))
    options = ["--keep-in-foreground", "--user=root", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    where = ["--listen-address=127.0.0.1", f"--addn-hosts={hosts}", "--pid-file="]
    names = machine.run(["dnsmasq", *options, *where], os.environ, folder, "dnsmasq.log")
    with _until_the_end(names), balancing(machine, folder, REPLICAS_DNS=_NAME) as balancer:
        until(lambda: balancer.up() == len(replicas))
        yield balancer


@contextlib.contextmanager
def _until_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)
