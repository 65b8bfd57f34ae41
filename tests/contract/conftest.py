# SPDX-License-Identifier: AGPL-3.0-only
"""The service that the contract is tested on: the one that MT_PHOTOS_ML_URL and MT_PHOTOS_ML_KEY name, else a bare one."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from contract.service import URL, Service, connected, started

from demo.__main__ import build, environment


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service with the demo's models."""
    if URL:
        with connected(URL, os.environ["MT_PHOTOS_ML_KEY"]) as service:
            yield service
        return
    folder = tmp_path_factory.mktemp("service")
    build(folder)
    with started(folder, {**environment(folder), "API_AUTH_KEY": "key of the tests"}) as service:
        yield service


@pytest.fixture(scope="session")
def about(service: Service) -> dict[str, Any]:
    """What /check tells."""
    answer: dict[str, Any] = service.http.post("/check").json()
    return answer
