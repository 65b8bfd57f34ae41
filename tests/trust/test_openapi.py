# SPDX-License-Identifier: AGPL-3.0-only
"""Requests of every shape, whose replies schemathesis checks against the OpenAPI document."""

from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings

from service import KEY, Service
from trust.tally import count

DOCUMENT = Path(__file__).parents[2] / "overlay" / "mt_photos_ml" / "dashboard" / "openapi.json"
# a measurement takes half a minute each time
schema = schemathesis.openapi.from_path(str(DOCUMENT)).exclude(path="/api/bench")


@schema.parametrize()
@settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_reply_matches_the_openapi_document(served: Service, case: schemathesis.Case[Any]) -> None:
    count("inputs tried")
    case.call_and_validate(base_url=served.url, headers={"api-key": KEY})
