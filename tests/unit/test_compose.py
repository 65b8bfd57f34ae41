# SPDX-License-Identifier: AGPL-3.0-only
"""compose.yaml: one service for each image that is published, started as the README starts it."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from docker_run import ROOT, images, read_run
from mt_photos_ml.settings import Settings
from scripts.upstream import Upstream

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
EXAMPLE = (ROOT / ".env.example").read_text()
VARIANTS = [variant.name for variant in Upstream.load().variants]


def of_the_readme(image: str) -> argparse.Namespace:
    lines = re.findall(r"^docker run .*", (ROOT / "README.md").read_text(), re.M)
    return next(run for run in map(read_run, map(shlex.split, lines)) if run.image == image)


def service(variant: str) -> dict[str, Any]:
    found: dict[str, Any] = COMPOSE["services"][variant]
    return found


def test_there_is_a_service_for_each_variant_and_its_profile_alone_starts_it() -> None:
    assert sorted(COMPOSE["services"]) == sorted(VARIANTS)
    for variant in VARIANTS:
        assert service(variant)["profiles"] == [variant]
        assert images()[service(variant)["image"]] == variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_service_is_started_as_the_line_of_the_readme_starts_it(variant: str) -> None:
    here, run = service(variant), of_the_readme(service(variant)["image"])
    assert here["ports"] == ["${HOST_PORT:-8060}:3003"]
    assert here["restart"] == run.restart
    assert here["container_name"] == run.name
    assert here.get("devices", []) == run.devices
    assert here.get("group_add", []) == run.groups
    assert [option for option in here["security_opt"] if option != "no-new-privileges:true"] == run.security
    assert here["volumes"][0] == "${CACHE_FOLDER:-cache}:/cache"
    assert here["volumes"][1:] == run.volumes[1:]
    assert ("deploy" in here) == (run.gpus is not None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_service_has_few_rights_and_time_to_finish(variant: str) -> None:
    here = service(variant)
    assert here["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in here["security_opt"]
    graceful = re.search(r"^graceful_timeout = (\d+)", (ROOT / "overlay/gunicorn.conf.py").read_text(), re.M)
    assert graceful is not None
    assert here["stop_grace_period"] == f"{graceful[1]}s"


def test_the_example_sets_what_there_is_to_set() -> None:
    given = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", EXAMPLE, re.M))
    assert given["COMPOSE_PROFILES"] in VARIANTS
    compose = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text())) | {"COMPOSE_PROFILES"}
    settings = {str(field.validation_alias) for field in Settings.model_fields.values()}
    assert compose <= given.keys() <= compose | settings
    assert not compose & settings
    assert all(variant in EXAMPLE for variant in VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_compose_itself_reads_it(variant: str, tmp_path: Path) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("no docker compose on this machine")
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    (tmp_path / ".env").write_text(EXAMPLE)
    command = ["docker", "compose", "config", "--services"]
    settings = {**os.environ, "COMPOSE_PROFILES": variant}
    ended = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=60)
    assert ended.stdout.split() == [variant], ended.stderr
