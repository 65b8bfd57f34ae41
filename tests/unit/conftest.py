# SPDX-License-Identifier: AGPL-3.0-only
"""What the modules share: a running service, its cache with the demo's models, and a photo."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from demo.pictures import text_page
from hub_files import impatient, other, server
from photos import jpeg
from service import Service, running

__all__ = ["impatient", "other", "server"]  # fixtures


@pytest.fixture
def anyio_backend() -> str:
    """Runs tests that are coroutines on asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def photo() -> bytes:
    page, _ = text_page(["First line of many", "Second line"], (2400, 1800))
    return jpeg(page)


@pytest.fixture(scope="module")
def service(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("service"), demo_environment(cache)) as started:
        yield started
