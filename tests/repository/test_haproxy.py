# SPDX-License-Identifier: AGPL-3.0-only
"""HAProxy in front of several machines: HAProxy accepts the configuration, and .env sets its variables."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mt_photos_ml.settings import DEFAULT_CLIP, DEFAULT_KEY

FOLDER = Path(__file__).parents[2] / "deploy" / "haproxy"
CONFIGURATION = (FOLDER / "haproxy.cfg").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["haproxy"]
EXAMPLE = (FOLDER / ".env.example").read_text()
needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy on this machine")


def check(**variables: str) -> subprocess.CompletedProcess[str]:
    """Checks the file with HAProxy, which treats warnings as errors."""
    command = ["haproxy", "-c", "-dW", "-f", str(FOLDER / "haproxy.cfg")]
    given = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False)


@needs_haproxy
@pytest.mark.parametrize(
    "variables",
    [
        {"MACHINE_1": "192.0.2.1:8060 maxconn 5"},
        {f"MACHINE_{number}": f"192.0.2.{number}:8060 maxconn 5 backup" for number in range(1, 6)},
        {"REPLICAS_DNS": "replicas.example.svc.cluster.local", "REPLICAS_MOST": "9", "REPLICA_PHOTOS": "3"},
        dict(re.findall(r"^(MACHINE_\d)=(.*)$", EXAMPLE, re.M)),
    ],
    ids=["one", "five", "cluster", "example"],
)
def test_haproxy_accepts_the_configuration(variables: dict[str, str]) -> None:
    ended = check(**variables)
    assert (ended.returncode, "WARNING" in ended.stderr) == (0, False), ended.stderr


@needs_haproxy
def test_haproxy_reports_that_no_machine_is_set() -> None:
    ended = check(MACHINE_1="", API_AUTH_KEY="", CLIP_VISUAL_MODEL_NAME="")
    assert ended.returncode == 1
    assert "Neither MACHINE_1 nor REPLICAS_DNS is set" in ended.stderr


def test_its_key_and_model_are_the_defaults_of_the_service() -> None:
    assert f"setenv API_AUTH_KEY {DEFAULT_KEY}\n" in CONFIGURATION
    assert f"setenv CLIP_VISUAL_MODEL_NAME {DEFAULT_CLIP}\n" in CONFIGURATION


def test_photos_and_searches_go_to_the_same_machines() -> None:
    sections = dict(re.findall(r"^backend (\w+)\n(.*?)(?=^\w|\Z)", CONFIGURATION, re.M | re.S))
    photos, searches = (re.findall(r"^ +server.*", sections[name], re.M) for name in ("photos", "searches"))
    assert photos == searches
    assert len(photos) == 6


def test_compose_passes_on_every_variable_of_the_example() -> None:
    named = set(re.findall(r"^#?([A-Z_0-9]+)=", EXAMPLE, re.M))
    assert {f"MACHINE_{number}" for number in range(1, 6)} < {*COMPOSE["environment"]}
    assert named <= {*COMPOSE["environment"], "BALANCER_PORT"}
    assert {*COMPOSE["environment"]} <= {*re.findall(r"\$\{?([A-Z_0-9]+)", CONFIGURATION)}
    assert COMPOSE["volumes"] == ["./haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro"]


def test_only_the_machine_itself_reaches_the_statistics() -> None:
    assert COMPOSE["ports"] == ["${BALANCER_PORT:-8061}:8061", "127.0.0.1:8404:8404"]
    assert {*re.findall(r'bind "\*:\$\{\w+-(\d+)\}"', CONFIGURATION)} == {"8061", "8404"}


def test_photos_in_progress_have_time_to_finish_when_haproxy_stops() -> None:
    (seconds,) = re.findall(r"hard-stop-after (\d+)s", CONFIGURATION)
    assert int(COMPOSE["stop_grace_period"].removesuffix("s")) > int(seconds)
