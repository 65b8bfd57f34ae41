# SPDX-License-Identifier: AGPL-3.0-only
"""`make test-trust`: faults, load and fuzzing against the real service. `--long` runs them for minutes to hours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from service import ON_DEVICE, Service, running
from trust import tally


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="minutes to hours of load, faults and fuzzing in place of seconds"
    )
    parser.addoption("--device", help="that every task runs on, such as openvino:cpu")


def pytest_configure(config: pytest.Config) -> None:
    if device := config.getoption("--device"):
        ON_DEVICE.update(dict.fromkeys(("OCR_DEVICE", "CLIP_DEVICE", "FACE_DEVICE"), device))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["tally"] = dict(tally.COUNTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    tally.COUNTS.update(node.workeroutput.get("tally", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("what was tried")
    for what, number in tally.COUNTS.items():
        terminalreporter.write_line(f"{what}: {number:,}")


@pytest.fixture(scope="session")
def long(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--long"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the demo's models."""
    return build(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def service(cache: Path, tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path, demo_environment(cache)) as started:
        yield started


@pytest.fixture(scope="module")
def served(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that the tests of a module share."""
    with running(tmp_path_factory.mktemp("served"), demo_environment(cache)) as started:
        yield started
