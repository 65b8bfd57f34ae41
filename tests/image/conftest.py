# SPDX-License-Identifier: AGPL-3.0-only
"""Builds the image on the stand-in base and tiny models for it, and starts containers with a published port."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from image import standin
from image.container import BASE, IMAGE, Container, Start, build, docker
from mt_photos_ml.machine.files import locked
from service import KEY, answers, free_port, until


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: only with --long")


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # tests/trust has it too
        parser.addoption("--long", action="store_true", help="every release and device, as containers, for an hour")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="only with --long"))


@pytest.fixture(scope="session")
def image() -> str:
    """Builds the image under test and returns its name."""
    if shutil.which("docker") is None:
        pytest.skip("no docker on this machine")
    with locked(Path(tempfile.gettempdir(), "mt-photos-ml-test")):  # Docker fails if two processes build one image
        standin.build()
        build(BASE, IMAGE)
    return IMAGE


@pytest.fixture(scope="session")
def start(image: str, cache: Path) -> Start:
    """Starts a container with settings and options of `docker run`, and waits until it answers."""

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
    return answers(f"{container.url}/ping")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with tiny models under the names that the image uses."""
    from scripts.contract import build_cache

    folder = tmp_path_factory.mktemp("cache")
    build_cache(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)  # a container may run as any user
    return folder
