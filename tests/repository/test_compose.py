# SPDX-License-Identifier: AGPL-3.0-only
"""The image as it is started, by the README's `docker run` lines and by compose.yaml: both say the same."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mt_photos_ml.settings import Settings
from scripts.upstream import Upstream, our_version

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
EXAMPLE = (ROOT / ".env.example").read_text()
VARIANTS = [variant.name for variant in Upstream.load().variants]
IMAGES = {f"devfox101/mt-photos-ml:{our_version()[1]}{base.suffix}": base for base in Upstream.load().bases}
"""What is published under the tags that move."""

RUN = argparse.ArgumentParser(prog="docker run", allow_abbrev=False)
RUN.add_argument("-d", action="store_true", required=True)
RUN.add_argument("--name", required=True)
RUN.add_argument("--restart", required=True)
RUN.add_argument("-p", dest="ports", action="append", required=True)
RUN.add_argument("-e", dest="settings", action="append", default=[])
RUN.add_argument("-v", dest="volumes", action="append", required=True)
RUN.add_argument("--device", dest="devices", action="append", default=[])
RUN.add_argument("--gpus", choices=["all"])
RUN.add_argument("--group-add", dest="groups", action="append", default=[])
RUN.add_argument("--security-opt", dest="security", action="append", default=[])
RUN.add_argument("--user")
RUN.add_argument("--read-only", action="store_true")
RUN.add_argument("--stop-timeout", type=int)
RUN.add_argument("--tmpfs", action="append", default=[])
RUN.add_argument("--cap-drop", action="append", default=[])
RUN.add_argument("image")


def of_the_readme() -> list[argparse.Namespace]:
    """The options of each `docker run` line, the variants' before the one with few rights."""
    lines = re.findall(r"^docker run (.*)", (ROOT / "README.md").read_text(), re.M)
    return [RUN.parse_args(shlex.split(line)) for line in lines]


def service(variant: str) -> dict[str, Any]:
    found: dict[str, Any] = COMPOSE["services"][variant]
    return found


@pytest.mark.parametrize("run", of_the_readme(), ids=lambda run: run.image)
def test_a_line_of_the_readme_starts_an_image_of_ours_so_that_mt_photos_reaches_it(run: argparse.Namespace) -> None:
    assert run.image in IMAGES
    assert run.ports == ["8060:3003"]
    assert run.volumes[0].split(":")[1:] == ["/cache"]
    given = dict(setting.split("=", 1) for setting in run.settings)
    assert given.keys() <= {str(field.validation_alias) for field in Settings.model_fields.values()}
    Settings.model_validate(given)


def test_the_readme_has_a_line_with_the_fewest_rights() -> None:
    (run,) = (run for run in of_the_readme() if run.user)
    assert (run.user, run.read_only, run.tmpfs, run.cap_drop) == ("1000:1000", True, ["/tmp"], ["ALL"])


def test_there_is_a_service_for_each_variant_and_its_profile_alone_starts_it() -> None:
    assert sorted(COMPOSE["services"]) == sorted(VARIANTS)
    for variant in VARIANTS:
        assert service(variant)["profiles"] == [variant]
        assert IMAGES[service(variant)["image"]].variant == variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_service_is_started_as_the_line_of_the_readme_starts_it(variant: str) -> None:
    here = service(variant)
    run = next(run for run in of_the_readme() if run.image == here["image"])
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
    graceful = re.search(
        r"^graceful_timeout = (\d+)", (ROOT / "overlay/mt_photos_ml/server/gunicorn_conf.py").read_text(), re.M
    )
    assert graceful is not None
    assert int(here["stop_grace_period"].removesuffix("s")) > int(graceful[1])


def test_the_example_sets_what_there_is_to_set() -> None:
    given = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", EXAMPLE, re.M))
    assert given["COMPOSE_PROFILES"] in VARIANTS
    compose = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text())) | {"COMPOSE_PROFILES"}
    settings = {str(field.validation_alias) for field in Settings.model_fields.values()}
    assert compose <= given.keys() <= compose | settings
    assert not compose & settings
    assert all(variant in EXAMPLE for variant in VARIANTS)


FIXED = {"HTTP_PORT", "IMMICH_PORT", "IMMICH_HOST", "DEVICE", "MACHINE_LEARNING_CACHE_FOLDER"}
"""Settings that the image or the mapping of the port gives."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_setting_reaches_the_container_from_env(variant: str) -> None:
    settings = {str(field.validation_alias) for field in Settings.model_fields.values()}
    given = service(variant)["environment"]
    assert sorted(given) == sorted({*settings - FIXED, "API_AUTH_KEY_FILE", "FORWARDED_ALLOW_IPS", "HTTPS_PROXY", "TZ"})
    assert "env_file" not in service(variant)  # an older compose stops where there is none


def as_compose_reads_it(folder: Path, env: str, variant: str) -> dict[str, Any]:
    """The variant's service, by the real one. Skips if there is none."""
    if subprocess.run(["sh", "-c", "docker compose version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker compose on this machine")
    shutil.copy(ROOT / "compose.yaml", folder)
    (folder / ".env").write_text(env)
    command = ["docker", "compose", "--profile", variant, "config", "--format", "json"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    services: dict[str, dict[str, Any]] = json.loads(ended.stdout)["services"]
    (told,) = services.items()
    assert told[0] == variant
    return told[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_that_is_named_is_started_alone_with_all_defaults(variant: str, tmp_path: Path) -> None:
    told = as_compose_reads_it(tmp_path, "", variant)
    assert [(port["target"], port["published"]) for port in told["ports"]] == [(3003, "8060")]
    assert set(told["environment"].values()) == {None}


def test_what_env_sets_is_given_to_the_container(tmp_path: Path) -> None:
    told = as_compose_reads_it(tmp_path, EXAMPLE + "\nFACE_MIN_SCORE=0.7\n", "cpu")["environment"]
    given = {name: value for name, value in told.items() if value is not None}
    assert given == {"API_AUTH_KEY": "mt_photos_ai_extra", "FACE_MIN_SCORE": "0.7"}


@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_bake_as_one_would_type_it_reads_compose_yaml_too_and_goes_on(target: str) -> None:
    if subprocess.run(["docker", "buildx", "version"], capture_output=True).returncode:
        pytest.skip("no docker buildx on this machine")
    ended = subprocess.run(
        ["docker", "buildx", "bake", target, "--print"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    bases = {made["args"]["BASE"] for made in json.loads(ended.stdout)["target"].values()}
    assert bases == {base.reference.partition("@")[0] for base in Upstream.load().bases if base.variant == target}
