# SPDX-License-Identifier: AGPL-3.0-only
"""The Grafana dashboard shows only metrics that the service exports."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from demo.pictures import text_page
from photos import jpeg
from service import post, running

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


def test_the_service_exports_every_metric_that_the_dashboard_shows(tmp_path: Path) -> None:
    with running(tmp_path, demo_environment(build(tmp_path / "cache"))) as service, service.client() as client:
        post(service, "/ocr", jpeg(text_page(["A line"], (800, 600))[0]))
        post(service, "/ocr", b"no photo")
        families = text_string_to_metric_families(client.get("/metrics").text)
    there = {sample.name for family in families for sample in family.samples}
    asked = set(re.findall(r"mt_photos_ml_\w+", DASHBOARD.read_text()))
    assert asked <= there
