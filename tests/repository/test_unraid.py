# SPDX-License-Identifier: AGPL-3.0-only
"""The template for unRAID: fields that unRAID knows, and the same container as compose.yaml starts."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from mt_photos_ml.settings import Settings

ROOT = Path(__file__).parents[2]
PATH = "deploy/unraid/mt-photos-ml.xml"
TEXT = (ROOT / PATH).read_text(encoding="utf-8")
TEMPLATE = ElementTree.fromstring(TEXT.encode())
CONFIGS = TEMPLATE.findall("Config")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVICE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["cpu"]

# docs.unraid.net, Unraid OS, Run Docker containers, Community Applications submissions: "XML field reference", the
# fields of a Docker template. What "Repository XML format" asks of each is the first set.
NEEDED = {"Name", "Repository", "Overview", "Category", "Support", "Project"}
RECOMMENDED = {"Icon", "TemplateURL"}
OTHERS = {"Beta", "Config", "Deprecated", "Description", "ExtraParams", "Network", "Privileged", "Registry", "WebUI"}
OTHERS |= {"DonateLink", "DonateText", "MyIP", "ReadMe", "Requires", "Shell"}

# wiki.unraid.net, "DockerTemplateSchema", and the form "Add Configuration" of unRAID's own pages, which writes them in
# this order: the attributes of <Config>, and what each may be.
ATTRIBUTES = ["Name", "Target", "Default", "Mode", "Description", "Type", "Display", "Required", "Mask"]
MODES = {
    "Path": {"rw", "rw,slave", "rw,shared", "ro", "ro,slave", "ro,shared"},
    "Port": {"tcp", "udp"},
    "Variable": {""},
    "Label": {""},
    "Device": {""},
}
DISPLAYS = {"always", "always-hide", "advanced", "advanced-hide"}
TRUTHS = {"true", "false"}


def text(name: str) -> str:
    """The content of the one element with this name."""
    (element,) = TEMPLATE.findall(name)
    return element.text or ""


def configs(kind: str) -> dict[str, ElementTree.Element]:
    """By what it is in the container: a port, a path, a variable."""
    return {config.attrib["Target"]: config for config in CONFIGS if config.attrib["Type"] == kind}


def test_it_is_a_template_with_fields_that_unraid_knows_each_of_them_once() -> None:
    assert (TEMPLATE.tag, TEMPLATE.attrib) == ("Container", {"version": "2"})
    names = [element.tag for element in TEMPLATE if element.tag != "Config"]
    assert len(names) == len(set(names))
    assert set(names) <= NEEDED | RECOMMENDED | OTHERS
    assert all(text(name) for name in names)
    assert NEEDED.issubset(names)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.get("Target"))
def test_a_config_has_the_attributes_and_values_that_unraid_knows(config: ElementTree.Element) -> None:
    assert list(config.attrib) == ATTRIBUTES
    assert config.attrib["Mode"] in MODES[config.attrib["Type"]]
    assert config.attrib["Display"] in DISPLAYS
    assert {config.attrib["Required"], config.attrib["Mask"]} <= TRUTHS
    assert (config.text or "") == config.attrib["Default"]
    assert config.attrib["Name"]
    assert config.attrib["Description"]


def test_a_config_is_one_line_with_single_spaces_as_unraid_writes_it() -> None:
    """Community Applications reads no other form, says the wiki."""
    lines = re.findall(r'^  <Config(?: \w+="[^"]*"){9}>[^<]*</Config>$', TEXT, re.M)
    assert len(lines) == len(CONFIGS) == TEXT.count("<Config")


def test_the_image_is_the_one_that_the_readme_and_compose_start() -> None:
    run = re.search(r"^docker run .* --stop-timeout (\d+) .* (\S+)$", README, re.M)
    assert run is not None
    assert text("Repository") == run[2] == SERVICE["image"]
    assert text("ExtraParams") == f"--stop-timeout {run[1]}"
    assert text("Registry") == f"https://hub.docker.com/r/{run[2].partition(':')[0]}"
    assert text("Name") == SERVICE["container_name"]
    assert (text("Network"), text("Privileged")) == ("bridge", "false")


def test_the_addresses_are_those_of_the_project() -> None:
    project = re.search(r"git clone (https://\S+)", README)
    assert project is not None
    assert text("Project") == project[1]
    assert text("Support") == f"{project[1]}/issues"
    raw = project[1].replace("https://github.com/", "https://raw.githubusercontent.com/")
    assert text("TemplateURL") == f"{raw}/main/{PATH}"


def test_the_port_and_the_folder_are_those_of_compose() -> None:
    ((inside, port),) = configs("Port").items()
    assert SERVICE["ports"] == [f"${{HOST_PORT:-{port.text}}}:{inside}"]
    assert port.attrib["Mode"] == "tcp"
    assert text("WebUI") == f"http://[IP]:[PORT:{inside}]/"
    ((folder, path),) = configs("Path").items()
    assert SERVICE["volumes"][0].endswith(f":{folder}")
    assert path.attrib["Mode"] == "rw"


def test_the_variables_are_settings_that_compose_passes_on_and_their_defaults_can_be_used() -> None:
    variables = configs("Variable")
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}
    assert variables.keys() <= known & set(SERVICE["environment"])
    given = {name: config.text for name, config in variables.items() if config.text}
    assert Settings.model_validate(given).model_dump(include={"tasks"}) == {
        "tasks": Settings.model_fields["tasks"].default
    }
    key = variables["API_AUTH_KEY"].attrib  # an empty one stops the start; one in the template would be everybody's
    assert (key["Default"], key["Required"], key["Mask"]) == ("", "true", "true")
