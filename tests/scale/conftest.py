# SPDX-License-Identifier: AGPL-3.0-only
"""`make test-scale`: provokes failures of machines behind HAProxy. Needs root, to create a network."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from scale import tally
from scale.balancer import Balancer, balancing
from scale.network import Network
from scale.replicas import Replica
from service import until
from trust.traffic import Request, answered, mixed

Start = Callable[..., Replica]


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # tests/trust has it too
        parser.addoption("--long", action="store_true", help="600 photos a fault, and throughput against the ideal")
    parser.addoption("--required", action="store_true", help="fail instead of skipping if no network can be made")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("photos through HAProxy")
    terminalreporter.write_line(f"{'fault':<44}{'sent':>7}{'answered':>10}{'wrong':>7}{'lost':>6}{'slowest':>10}")
    for fault, sent, right, wrong, lost, slowest in tally.FAULTS:
        terminalreporter.write_line(f"{fault:<44}{sent:>7}{right:>10}{wrong:>7}{lost:>6}{slowest:>8.1f} s")
    for line in tally.MEASURED:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def long(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--long"))


@pytest.fixture(scope="session")
def least(long: bool) -> int:
    """The least number of photos to send with each fault."""
    return 600 if long else 0


@pytest.fixture(scope="session")
def network(pytestconfig: pytest.Config) -> Iterator[Network]:
    refuse = pytest.fail if pytestconfig.getoption("--required") else pytest.skip
    if missing := [program for program in ("haproxy", "dnsmasq", "ip") if shutil.which(program) is None]:
        refuse(f"not installed on this machine: {', '.join(missing)}")
    if os.geteuid():
        refuse("only root can create a network")
    made, before = Network(), signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it is closed
    try:
        try:
            made.machine()
        except (OSError, subprocess.CalledProcessError) as error:
            refuse(f"can't create a network: {getattr(error, 'stderr', error)}")
        yield made
    finally:
        made.close()
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the demo's models."""
    return build(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def start(network: Network, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts the service on a new machine. photos: processed at once. waiting: how many may wait."""

    def started(photos: int = 2, waiting: int = 100, **settings: str) -> Replica:
        folder = tmp_path_factory.mktemp("replica")
        made = Replica(network.machine(), folder, {**demo_environment(cache), **settings}, photos, waiting)
        made.pace(0.1)
        made.begin()
        return made

    return started


@pytest.fixture(scope="session")
def three(start: Start) -> list[Replica]:
    return [start(photos=4), start(DRAIN="4"), start()]


@pytest.fixture
def machines(network: Network, three: list[Replica]) -> list[Replica]:
    """Three running machines, the first twice as fast as the others."""
    for number, machine in enumerate(three):
        machine.pace(0.3 if number else 0.15)
        network.plug(machine.machine)
        machine.start()
    return three


@pytest.fixture(scope="session")
def photos(three: list[Replica]) -> list[Request]:
    """Requests with the answers of a single machine."""
    three[0].start()
    asked = mixed(each=8)
    colours = answered(three[0].url, [request for request in asked if request.route == "/clip/img"])
    return colours + answered(three[0].url, asked[1:3]) + colours


@pytest.fixture(scope="session")
def shared(network: Network, three: list[Replica], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    folder = tmp_path_factory.mktemp("haproxy")
    with balancing(network.machine(), folder, *(machine.words for machine in three)) as made:
        yield made


@pytest.fixture
def balancer(shared: Balancer, machines: list[Replica]) -> Balancer:
    """HAProxy in front of the three machines, all up."""
    until(lambda: shared.up() == len(machines))
    return shared
