# SPDX-License-Identifier: AGPL-3.0-only
"""The workflows: what they pin and what they may do, and their steps run with a stand-in for GitHub's command."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.upstream import Upstream

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
NAMES = ("ci", "images", "upstream-watch")
MACHINES = {"linux/amd64": "ubuntu-24.04", "linux/arm64": "ubuntu-24.04-arm"}

GH = """#!/bin/sh
echo "$@" >> "$GH_CALLS"
case "$1 $2" in
  "api repos/immich-app/immich/releases/latest") echo "$GH_NEWEST" ;;
  "pr list") echo "$GH_OPEN" ;;
  "pr create") cat "$8" >> "$GH_CALLS" ;;
esac
"""


def workflow(name: str) -> dict[Any, Any]:
    read: dict[Any, Any] = yaml.safe_load((FOLDER / f"{name}.yml").read_text())
    return read


def triggers(name: str) -> dict[str, Any]:
    found: dict[str, Any] = workflow(name)[True]  # YAML 1.1 reads `on` so
    return found


def step(name: str, job: str, title: str) -> str:
    steps = workflow(name)["jobs"][job]["steps"]
    return next(str(step["run"]) for step in steps if step.get("name") == title)


def run(script: str, folder: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A step, as a runner would run it: in folder, with a `gh` that writes down what it is asked."""
    tools = folder.parent / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "gh").write_text(GH)
    (tools / "gh").chmod(0o755)
    (tools / "python3").unlink(missing_ok=True)
    (tools / "python3").symlink_to(sys.executable)
    given = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(folder.parent),
        "GITHUB_OUTPUT": str(folder.parent / "output"),
        "GH_CALLS": str(folder.parent / "calls"),
        "RUNNER_TEMP": str(folder.parent),
        **settings,
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=60)


def test_these_are_all() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(f"{name}.yml" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_pinned_by_commit_the_same_everywhere(name: str) -> None:
    everywhere = "".join(path.read_text() for path in FOLDER.iterdir())
    used = re.findall(r"uses: (.*)", (FOLDER / f"{name}.yml").read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
        assert set(re.findall(rf"uses: ({action.partition('@')[0]}@.*)", everywhere)) == {action}


@pytest.mark.parametrize("name", NAMES)
def test_a_job_has_no_right_but_those_it_names_and_an_end(name: str) -> None:
    read = workflow(name)
    assert read["permissions"] == {}
    assert "concurrency" in read
    for job in read["jobs"].values():
        assert job["permissions"]
        assert job["timeout-minutes"] <= 120
        checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
        assert all(step["with"] == {"persist-credentials": False} for step in checkouts)


def test_ci_runs_for_every_change_on_every_python_that_the_package_allows() -> None:
    assert set(triggers("ci")) == {"pull_request", "push", "workflow_dispatch"}
    pythons = workflow("ci")["jobs"]["test"]["strategy"]["matrix"]["python"]
    allowed = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert allowed is not None
    assert pythons == [f"3.{minor}" for minor in range(int(allowed[1]), int(allowed[2]))]


def test_the_targets_that_the_workflows_make_are_there() -> None:
    texts = "".join((FOLDER / f"{name}.yml").read_text() for name in NAMES)
    targets = set(re.findall(r"(?:run: |\" )make (.*)", texts))
    assert targets >= {"lint", "test", "test-image"}
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_images_are_built_of_a_version_tag_alone_each_on_its_own_platform() -> None:
    assert triggers("images") == {"push": {"tags": ["v*"]}}
    images = workflow("images")["jobs"]["build"]["strategy"]["matrix"]["include"]
    assert images == [
        {"target": base.target, "variant": base.variant, "platform": base.platform, "runner": MACHINES[base.platform]}
        for base in Upstream.load().bases
    ]


def test_an_image_is_tested_before_anybody_logs_in_to_push_it() -> None:
    steps = workflow("images")["jobs"]["build"]["steps"]
    order = [step.get("name") or step["uses"].partition("@")[0] for step in steps]
    wanted = ["Build", "Test the container", "docker/login-action", "Push by digest, with provenance and SBOM"]
    assert [name for name in order if name in wanted] == wanted


def test_what_is_pushed_reaches_publish_by_target_and_digest(tmp_path: Path) -> None:
    (tmp_path / "pushed").mkdir()
    for base in Upstream.load().bases:
        (tmp_path / "pushed" / base.target).write_text(f"{base.target}=sha256:{base.target}\n")
    (tmp_path / "tree" / "scripts").mkdir(parents=True)
    (tmp_path / "tree" / "scripts" / "publish.py").write_text(
        "import sys\nprint(*sys.argv[1:], 'v2.5.6-r1-arm -> sha256:a', 'v2.5.6-r1 -> sha256:b', sep='\\n')\n"
    )
    script = step("images", "publish", "Make the manifests and tags")
    ended = run(script, tmp_path / "tree", {"GITHUB_REF_NAME": "v2.5.6-r1"})
    assert ended.stdout.splitlines()[:-2] == sorted(
        f"--image={base.target}=sha256:{base.target}" for base in Upstream.load().bases
    )
    assert (tmp_path / "output").read_text() == "digest=sha256:b\n"


@pytest.mark.parametrize(
    ("newest", "open_requests", "expected"),
    [("v99.0.0", "0", "version=v99.0.0\n"), ("v99.0.0", "1", ""), ("v1.0.0", "0", ""), ("same", "0", "")],
)
def test_a_release_is_taken_up_once_and_only_if_it_is_newer(
    newest: str, open_requests: str, expected: str, tmp_path: Path
) -> None:
    ours = Upstream.load().version
    (tmp_path / "tree" / "patches").mkdir(parents=True)
    (tmp_path / "tree" / "patches" / "upstream.toml").write_text(f'version = "{ours}"\n')
    (tmp_path / "output").write_text("")
    script = step("upstream-watch", "look", "Find the newest release")
    settings = {"GH_NEWEST": ours if newest == "same" else newest, "GH_OPEN": open_requests}
    ended = run(script, tmp_path / "tree", settings)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "output").read_text() == expected


def test_a_release_whose_name_is_no_version_stops_the_watch(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    script = step("upstream-watch", "look", "Find the newest release")
    assert run(script, tmp_path / "tree", {"GH_NEWEST": "v9; rm -rf .", "GH_OPEN": "0"}).returncode == 1
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(("code", "passes"), [(0, True), (3, True), (1, False)])
def test_what_bump_changes_becomes_a_branch_with_its_report(code: int, passes: bool, tmp_path: Path) -> None:
    tree, origin = tmp_path / "tree", tmp_path / "origin.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(origin)], check=True)
    subprocess.run(["git", "init", "--quiet", str(tree)], check=True)
    (tree / "VERSION").write_text("v2.5.6-r1\n")
    (tree / "scripts").mkdir()
    (tree / "scripts" / "bump.py").write_text(
        "import pathlib, sys\n"
        "pathlib.Path('VERSION').write_text(f'{sys.argv[2]}-r1\\n')\n"
        "print('GONE: immich_ml.main.load is gone')\n"
        f"sys.exit({code})\n"
    )
    git = ["git", "-C", str(tree), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for words in (["add", "--all"], ["commit", "--quiet", "-m", "first"], ["remote", "add", "origin", str(origin)]):
        subprocess.run([*git, *words], check=True)
    ended = run(step("upstream-watch", "look", "Bump"), tree, {"VERSION": "v2.5.7", "PYTHONDONTWRITEBYTECODE": "1"})
    assert (ended.returncode == 0) == passes, ended.stderr
    if not passes:
        return
    subprocess.run([*git, "reset", "--quiet", "--hard"], check=True)
    script = step("upstream-watch", "propose", "Push the branch, open the pull request, start CI")
    ended = run(script, tree, {"VERSION": "v2.5.7"})
    assert ended.returncode == 0, ended.stderr
    show = ["git", "-C", str(origin), "show", "bump/v2.5.7:VERSION"]
    assert subprocess.run(show, capture_output=True, text=True, check=True).stdout == "v2.5.7-r1\n"
    calls = (tmp_path / "calls").read_text()
    assert "GONE: immich_ml.main.load is gone" in calls
    assert calls.splitlines()[-1] == "workflow run ci.yml --ref bump/v2.5.7"
