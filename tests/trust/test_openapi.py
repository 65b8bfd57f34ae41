# SPDX-License-Identifier: AGPL-3.0-only
"""Requests of every shape, whose replies schemathesis checks against the OpenAPI document."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from demo.__main__ import environment as demo_environment
from service import KEY, Service, running
from trust.tally import count

DOCUMENT = Path(__file__).parents[2] / "overlay" / "mt_photos_ml" / "dashboard" / "openapi.json"
# a measurement takes half a minute each time
schema = schemathesis.openapi.from_path(str(DOCUMENT)).exclude(path="/api/bench")


@pytest.fixture(scope="module")
def served(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("openapi"), demo_environment(cache)) as service:
        yield service


@schema.parametrize()
@settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_reply_matches_the_openapi_document(served: Service, case: schemathesis.Case[Any]) -> None:
    count("inputs tried")
    case.call_and_validate(base_url=served.url, headers={"api-key": KEY})
