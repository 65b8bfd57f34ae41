# SPDX-License-Identifier: AGPL-3.0-only
"""The README's `docker run` lines, compose.yaml and the unRAID template start the image in the same way."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from mt_photos_ml.settings import Settings
from scripts.mirror import MIRRORS
from scripts.upstream import Upstream

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
EXAMPLE = (ROOT / ".env.example").read_text()
SETTINGS = {str(field.validation_alias) for field in Settings.model_fields.values()}
UPSTREAM = Upstream.load()
STAYED = {variant.name: variant.version for variant in UPSTREAM.variants if variant.version}
IMAGES = {
    f"docker.io/devfox101/mt-photos-ml:{STAYED.get(base.variant, UPSTREAM.version)}{base.suffix}": base
    for base in UPSTREAM.every
}
"""Bases by the moving tag of our image; a variant that upstream did not publish this time keeps its old tag."""
REGISTRY = re.compile(r"\$\{REGISTRY:-([^}]+)\}")
"""The registry with the owner; docker.io/devfox101 if REGISTRY is not set."""
FIXED = {"HTTP_PORT", "IMMICH_PORT", "IMMICH_HOST", "DEVICE", "MACHINE_LEARNING_CACHE_FOLDER"}
"""Settings that the image or the port mapping determines."""
UNRAID = (ROOT / "deploy/unraid/mt-photos-ml.xml").read_text()
TEMPLATE = ElementTree.fromstring(UNRAID)
CONFIGS = TEMPLATE.findall("Config")

RUN = argparse.ArgumentParser(prog="docker run", allow_abbrev=False)
for flag in ("-d", "--read-only"):
    RUN.add_argument(flag, action="store_true")
for option in ("--name", "--restart", "--gpus", "--user", "--stop-timeout"):
    RUN.add_argument(option)
for option in ("-p", "-e", "-v", "--device", "--group-add", "--security-opt", "--tmpfs", "--cap-drop"):
    RUN.add_argument(option, action="append", default=[])
RUN.add_argument("image")


def of_the_readme() -> list[argparse.Namespace]:
    """The options of each `docker run` line: one per variant, then the one with the fewest rights."""
    lines = re.findall(r"^docker run (.*)", (ROOT / "README.md").read_text(), re.M)
    return [RUN.parse_args(shlex.split(REGISTRY.sub(r"\1", line))) for line in lines]


def image_of(service: dict[str, Any]) -> str:
    """The service's image with the default registry."""
    return REGISTRY.sub(r"\1", service["image"])


@pytest.mark.parametrize("run", of_the_readme(), ids=lambda run: run.image)
def test_a_line_of_the_readme_starts_our_image_with_its_port_and_its_cache(run: argparse.Namespace) -> None:
    assert run.image in IMAGES
    assert (run.d, run.p, run.v[0].split(":")[1:]) == (True, ["8060:3003"], ["/cache"])
    given = dict(setting.split("=", 1) for setting in run.e)
    assert given.keys() <= SETTINGS
    Settings.model_validate(given)


def test_the_readme_has_a_line_with_the_fewest_rights() -> None:
    (run,) = (run for run in of_the_readme() if run.user)
    assert (run.user, run.read_only, run.tmpfs, run.cap_drop) == ("1000:1000", True, ["/tmp"], ["ALL"])


def test_there_is_a_service_for_each_variant_and_its_profile_alone_starts_it() -> None:
    started = {service["profiles"][0]: IMAGES[image_of(service)].variant for service in SERVICES.values()}
    assert started == {variant.name: variant.name for variant in UPSTREAM.variants}


def test_every_line_takes_another_registry_and_the_docs_name_all_of_them() -> None:
    lines = [*re.findall(r"^docker run .*", (ROOT / "README.md").read_text(), re.M)]
    lines += [service["image"] for service in SERVICES.values()]
    assert all(REGISTRY.search(line) for line in lines)
    for page in ("docs/nas.md", "docs/nas.zh-CN.md"):
        for mirror in MIRRORS.values():
            assert f"`{mirror.repository.removesuffix('/mt-photos-ml')}`" in (ROOT / page).read_text()


@pytest.mark.parametrize("variant", SERVICES)
def test_a_service_is_started_as_the_line_of_the_readme_starts_it(variant: str) -> None:
    here = SERVICES[variant]
    run = next(run for run in of_the_readme() if run.image == image_of(here))
    assert here["ports"] == ["${HOST_PORT:-8060}:3003"]
    assert (here["restart"], here["container_name"]) == (run.restart, run.name)
    assert (here.get("devices", []), here.get("group_add", [])) == (run.device, run.group_add)
    assert here["security_opt"] == ["no-new-privileges:true", *run.security_opt]
    assert here["volumes"] == ["${CACHE_FOLDER:-cache}:/cache", *run.v[1:]]
    assert ("deploy" in here) == (run.gpus is not None)
    assert here["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("variant", SERVICES)
def test_a_service_has_time_to_finish(variant: str) -> None:
    configuration = (ROOT / "overlay/mt_photos_ml/server/gunicorn_conf.py").read_text()
    (graceful,) = re.findall(r"^graceful_timeout = (\d+)", configuration, re.M)
    assert int(SERVICES[variant]["stop_grace_period"].removesuffix("s")) > int(graceful)


def test_the_example_sets_every_variable_that_compose_uses() -> None:
    given = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", EXAMPLE, re.M))
    assert given["COMPOSE_PROFILES"] in SERVICES
    compose = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text())) | {"COMPOSE_PROFILES"}
    assert compose <= given.keys() <= compose | SETTINGS
    assert all(variant in EXAMPLE for variant in SERVICES)


@pytest.mark.parametrize("variant", SERVICES)
def test_every_setting_reaches_the_container_from_env(variant: str) -> None:
    given = SERVICES[variant]["environment"]
    of_libraries = {"FORWARDED_ALLOW_IPS", "HTTPS_PROXY", "NO_PROXY", "TZ"}
    assert sorted(given) == sorted({*SETTINGS - FIXED, "API_AUTH_KEY_FILE", *of_libraries})
    assert "env_file" not in SERVICES[variant]  # an older compose fails if the file is missing


@pytest.mark.parametrize("variant", SERVICES)
def test_compose_starts_only_the_named_variant_with_all_defaults(variant: str, tmp_path: Path) -> None:
    """Asks the real docker compose. tests/image starts a service and sets variables in .env."""
    if subprocess.run(["sh", "-c", "docker compose version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker compose on this machine")
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    command = ["docker", "compose", "--profile", variant, "config", "--format", "json"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    ((name, told),) = json.loads(ended.stdout)["services"].items()
    assert (name, [(port["target"], port["published"]) for port in told["ports"]]) == (variant, [(3003, "8060")])
    assert set(told["environment"].values()) == {None}


def configs(kind: str) -> dict[str, ElementTree.Element]:
    """The entries of this type (Port, Path or Variable), by what they set in the container."""
    return {config.attrib["Target"]: config for config in CONFIGS if config.attrib["Type"] == kind}


def test_the_template_for_unraid_starts_the_container_of_compose() -> None:
    here, ((inside, port),), ((folder, _),) = SERVICES["cpu"], configs("Port").items(), configs("Path").items()
    assert here["ports"] == [f"${{HOST_PORT:-{port.text}}}:{inside}"]
    assert here["volumes"][0].endswith(f":{folder}")
    assert f"docker.io/{TEMPLATE.findtext('Repository')}" == image_of(here)
    assert TEMPLATE.findtext("ExtraParams") == f"--stop-timeout {here['stop_grace_period'].removesuffix('s')}"
    assert TEMPLATE.findtext("WebUI") == f"http://[IP]:[PORT:{inside}]/"
    assert (TEMPLATE.findtext("Network"), TEMPLATE.findtext("Privileged")) == ("bridge", "false")


def test_the_variables_of_unraid_are_settings_and_the_key_has_no_default() -> None:
    variables = configs("Variable")
    assert variables.keys() <= SETTINGS & set(SERVICES["cpu"]["environment"])
    Settings.model_validate({name: config.text for name, config in variables.items() if config.text})
    key = variables["API_AUTH_KEY"].attrib
    assert (key["Default"], key["Required"], key["Mask"]) == ("", "true", "true")


def test_a_config_of_unraid_is_one_line_with_nine_attributes() -> None:
    """According to its wiki, Community Applications accepts only this form."""
    lines = re.findall(r'^  <Config(?: \w+="[^"]*"){9}>[^<]*</Config>$', UNRAID, re.M)
    assert len(lines) == len(CONFIGS)
    assert all((config.text or "") == config.attrib["Default"] for config in CONFIGS)
