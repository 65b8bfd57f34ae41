# SPDX-License-Identifier: AGPL-3.0-only
"""The README and the docs: their commands work, both languages agree, and what they say matches the code."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import official
from demo.__main__ import build
from demo.__main__ import environment as demo_environment
from demo.pictures import colour_photo
from mt_photos_ml import version
from mt_photos_ml.settings import DEFAULT_KEY
from scripts.compare import NAMES
from scripts.settings import PAGES as PAGES_OF_SETTINGS
from scripts.settings import render
from service import Service, run_command, running

ROOT = Path(__file__).parents[2]
GUIDES = (
    *("devices", "faq", "install", "known-differences", "migration", "models", "monitoring", "nas", "scaling"),
    *("settings", "speed", "troubleshooting"),
)
PAGES = ("README", *(f"docs/{name}" for name in GUIDES))
"""The pages for users, each in English and in Chinese."""
ENGLISH, CHINESE = ([f"{page}{ending}" for page in PAGES] for ending in (".md", ".zh-CN.md"))
DEVELOPERS = ("CONTRIBUTING.md", "SECURITY.md", *(f"docs/{name}.md" for name in ("architecture", "maintaining")))
DEVELOPERS += ("docs/reliability.md",)


def page(name: str) -> str:
    return (ROOT / name).read_text()


def commands(name: str) -> list[str]:
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", page(name), re.M | re.S)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if not line.startswith("#")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("readme")
    build(folder / "cache")
    colour_photo("red", (640, 480)).save(folder / "photo.jpg")
    with running(folder, {**demo_environment(folder / "cache"), "API_AUTH_KEY": DEFAULT_KEY}) as started:
        yield started


@pytest.mark.parametrize(("english", "chinese"), list(zip(ENGLISH, CHINESE, strict=True)))
def test_both_languages_show_the_same_commands_and_as_many_sections_and_rows(english: str, chinese: str) -> None:
    assert commands(english) == commands(chinese)
    for mark in (r"^#+ ", r"^\|", r"^- "):
        assert len(re.findall(mark, page(english), re.M)) == len(re.findall(mark, page(chinese), re.M)), mark


@pytest.mark.parametrize("readme", [ENGLISH[0], CHINESE[0]])
def test_the_readme_is_one_page_and_leads_to_all_others(readme: str) -> None:
    assert len(page(readme).splitlines()) <= 150
    for other in (ENGLISH if readme == ENGLISH[0] else CHINESE)[1:]:
        assert f"]({other})" in page(readme)


@pytest.mark.parametrize("command", dict.fromkeys(line for page in (*ENGLISH, *DEVELOPERS) for line in commands(page)))
def test_a_command_in_the_docs_works(command: str, service: Service) -> None:
    folder = service.log.parent
    match shlex.split(command.replace("http://127.0.0.1:8060", service.url)):
        case ["make", *words]:  # these tests run inside make, so only check that the target exists
            output("make", "--dry-run", *words)
        case ["git", "clone", address, *_, entered]:
            assert entered == address.rpartition("/")[2]
        case ["cp", source, target]:
            shutil.copy(ROOT / source, folder / target)
        case ["docker", *words]:  # test_compose.py checks `docker run` and compose.yaml
            if words[0] == "exec":  # in the container the command is run as a module
                shown = words[words.index("models") : -1]
                assert run_command(demo_environment(folder / "cache"), *shown, "--help").returncode == 0
            else:
                known = words[0] in ("run", "create", "cp", "rm") or words == ["compose", "pull"]
                assert known or words == ["compose", "up", "-d"]
        case ["kubectl", *words]:  # test_kubernetes.py renders the manifests
            assert {"create", "apply", "get", "patch", "rollout", "port-forward"} & set(words)
            assert all((ROOT / word).is_dir() for word in words if word.startswith("deploy/"))
        case ["curl", *words]:
            if shutil.which("curl") is None:
                pytest.skip("no curl on this machine")
            said = output("curl", *words, "--fail", "--silent", folder=folder)
            assert "pong" in said or '"result"' in said
        case [".venv/bin/python", "-m", script, *_]:
            output(sys.executable, "-m", script, "--help")
        case [".venv/bin/mt-photos-ml", *words]:
            words = [str(folder / word) if word in ("photo.jpg", "./official") else word for word in words]
            offline = {**demo_environment(folder / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}
            offline |= {"TASKS": "clip"} if words == ["bench"] else {}
            if words[1:2] == ["adopt"]:
                official.install(folder / "official")
                offline["MACHINE_LEARNING_CACHE_FOLDER"] = str(folder / "another")
            ended = run_command(offline, *words)
            assert ended.returncode == 0, ended.stdout + ended.stderr
        case words:
            assert words[:2] in (["git", "tag"], ["git", "push"])


def output(*command: str, folder: Path = ROOT) -> str:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def names_of_upstream() -> dict[str, tuple[str, ...]]:
    """The names that we rely on, by module in our image."""
    modules = {path.removesuffix("/__init__.py").removesuffix(".py").replace("/", "."): n for path, n in NAMES.items()}
    return {module.replace("immich_ml.main", "immich_ml.upstream_main"): names for module, names in modules.items()}


def test_every_file_that_replaces_one_of_upstream_and_every_name_in_use_is_accounted_for() -> None:
    text = page("docs/maintaining.md")
    for path in (ROOT / "patches").rglob("*.*"):
        assert "__pycache__" in path.parts or f"### {path.relative_to(ROOT / 'patches')}\n" in text, path
    for module, names in names_of_upstream().items():
        for name in names:
            assert f"`{module.removeprefix('immich_ml.')}.{name}`" in text, name


def test_no_other_file_names_upstreams_package() -> None:
    """Tests and scripts may name it; code in the image may use only the names in compare.NAMES."""
    found: dict[str, set[str]] = {}
    for path in (*(ROOT / "overlay").rglob("*.py"), *(ROOT / "patches").rglob("*.py")):
        if used := re.findall(r"\bimmich_ml[.\w]*", path.read_text()):
            found[path.name] = set(used)
    assert found.keys() <= {"upstream.py", "npu.py"}
    assert set().union(*found.values()) - {"immich_ml.main"} == set(names_of_upstream())


@pytest.mark.parametrize("name", ["docs/troubleshooting.md", "docs/troubleshooting.zh-CN.md"])
def test_every_message_of_the_service_is_explained(name: str) -> None:
    """Covers messages that are one string in the code: arguments of our exceptions, and fixed replies."""
    source = "\n".join(path.read_text() for path in (ROOT / "overlay" / "mt_photos_ml").rglob("*.py"))
    raised = r"raise (?:PhotoError|BadForm|Busy|TaskOff|DecoderMissing|ModelUnavailable|InferenceError|NotAVector)\(\s*"
    said = re.findall(raised + r'f?"([^"]+)"', source) + re.findall(r'nothing\(\d+, "([^"]+)"', source)
    explained = re.findall(r"^\| `(.+?)` \|", page(name), re.M)
    parts = {told: max(told.split("…"), key=len).strip() for told in explained}
    assert len(said) > 12
    for message in said:
        fixed = max(re.split(r"\{[^}]*\}", message), key=len).strip()
        assert any(fixed[:25] in told or part in message for told, part in parts.items()), message


@pytest.mark.parametrize("page", PAGES_OF_SETTINGS, ids=lambda page: page.name)
def test_the_settings_pages_match_the_settings(page: Path) -> None:
    assert page.read_text() == render(page), "run python -m scripts.settings"


@pytest.mark.parametrize("name", [*ENGLISH, *CHINESE, *DEVELOPERS])
def test_the_links_within_the_project_lead_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page(name)):
        found = (ROOT / name).parent.joinpath(target) if target else ROOT / name
        assert found.exists(), target
        headings = re.findall(r"^#+ (.*)", found.read_text(), re.M) if anchor else []
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings], anchor


def test_the_version_is_the_one_in_the_file_and_in_the_changelog() -> None:
    assert version() == (ROOT / "VERSION").read_text().strip()
    assert f"## {version()}" in (ROOT / "CHANGELOG.md").read_text()


def test_no_local_path_and_no_host_of_a_registry_is_in_the_tree() -> None:
    pattern = re.compile(r"/(?:root|home/\w+)/|https?://[\w.]*(?:pypi|npmjs|debian)[\w.]*/")
    for name in output("git", "ls-files").splitlines():
        path = ROOT / name
        if path != Path(__file__) and path.is_file() and path.suffix != ".png":
            assert not pattern.search(path.read_text(encoding="utf-8")), name
