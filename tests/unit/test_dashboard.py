# SPDX-License-Identifier: AGPL-3.0-only
"""The dashboard for Grafana shows what the service tells."""

import json
import re
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from service import Service, post

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


def test_the_dashboard_is_one_of_grafana_and_asks_for_what_there_is(service: Service, photo: bytes) -> None:
    written = json.loads(DASHBOARD.read_text())
    again = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))
    assert all(again[name] == value for name, value in written.items() if name not in ("panels", "templating"))
    assert [panel["title"] for panel in again["panels"]] == [panel["title"] for panel in written["panels"]]
    assert all({"type", "gridPos", "targets", "fieldConfig"} <= panel.keys() for panel in again["panels"]), (
        "a field that Grafana does not know is dropped"
    )
    post(service, "/ocr", photo)
    post(service, "/ocr", b"no photo")
    with service.client() as client:
        families = text_string_to_metric_families(client.get("/metrics").text)
    there = {sample.name for family in families for sample in family.samples}
    asked = set(re.findall(r"mt_photos_ml_\w+", DASHBOARD.read_text()))
    assert asked <= there
