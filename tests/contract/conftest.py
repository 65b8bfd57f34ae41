# SPDX-License-Identifier: AGPL-3.0-only
"""Where the API is tested: at MT_PHOTOS_ML_URL with the key MT_PHOTOS_ML_KEY, else on a bare service started here."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from contract.api import URL, Api, connected
from demo.__main__ import build, environment
from service import KEY, running


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The API of a running service with the demo's models."""
    if URL:
        with connected(URL, os.environ["MT_PHOTOS_ML_KEY"]) as there:
            yield there
        return
    folder = build(tmp_path_factory.mktemp("service"))
    with running(folder, environment(folder)) as service, connected(service.url, KEY) as here:
        yield here
    assert service.process.returncode == 0, service.log.read_text()


@pytest.fixture(scope="session")
def about(api: Api) -> dict[str, Any]:
    """The reply of /check."""
    told: dict[str, Any] = api.http.post("/check").json()
    return told
