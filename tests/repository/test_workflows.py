# SPDX-License-Identifier: AGPL-3.0-only
"""The workflows: what they pin and what they may do, and their steps run with a stand-in for GitHub's command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.upstream import Upstream

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
NAMES = sorted(path.stem for path in FOLDER.iterdir())
OURS = "github.repository == 'dev-fox-101/mt-photos-ml'"

GH = """#!/bin/sh
echo "$@" >> "$GH_CALLS"
for last; do :; done
case "$*" in
  "api repos/immich-app/immich/releases/latest"*) echo "$GH_NEWEST" ;;
  "pr list"*"--state closed"*) echo "$GH_CLOSED" ;;
  "pr list"*"--state open"*) echo "$GH_OPEN" ;;
  "issue list"*) echo "$GH_ISSUE" ;;
  *"--body-file"*) cat "$last" >> "$GH_CALLS" ;;
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


def run(program: str, folder: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
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
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", program]
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=60)


def script(folder: Path, name: str, source: str) -> None:
    """Stands in for one of scripts/, in the folder that steps run in."""
    (folder / "tree" / "scripts").mkdir(parents=True, exist_ok=True)
    (folder / "tree" / "scripts" / f"{name}.py").write_text(f"import sys\n{source}\n")


def test_an_action_has_the_same_pin_everywhere() -> None:
    pins = set(re.findall(r"uses: (.*)", "".join(path.read_text() for path in FOLDER.iterdir())))
    assert len(pins) == len({pin.partition("@")[0] for pin in pins}) > 5


def test_a_job_ends() -> None:
    assert all(job["timeout-minutes"] <= 120 for name in NAMES for job in jobs(name).values())


def test_ci_runs_for_every_change_on_every_python_that_the_package_allows() -> None:
    assert set(triggers("ci")) == {"pull_request", "push", "schedule", "workflow_dispatch"}
    pythons = workflow("ci")["jobs"]["test"]["strategy"]["matrix"]["python"]
    allowed = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert allowed is not None
    assert pythons == [f"3.{minor}" for minor in range(int(allowed[1]), int(allowed[2]))]


def test_the_targets_that_the_workflows_make_are_there() -> None:
    texts = "".join((FOLDER / f"{name}.yml").read_text() for name in NAMES)
    targets = set(re.findall(r"(?:run: |\" )make ([\w.-]+)", texts))
    assert targets >= {"lint", "audit", "test", "test-image"}
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True, timeout=60)


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = workflow(name)["jobs"]
    return found


def text(job: dict[str, Any]) -> str:
    """Everything that the job does."""
    return yaml.safe_dump(job, width=10_000)


def test_images_are_published_of_a_version_tag_alone_or_named_again_by_hand() -> None:
    assert triggers("images") == {
        "push": {"tags": ["v*"]},
        "workflow_dispatch": {"inputs": {"retag": triggers("images")["workflow_dispatch"]["inputs"]["retag"]}},
    }
    assert "github.event_name == 'push'" in jobs("images")["plan"]["if"]
    assert "github.event_name == 'workflow_dispatch'" in jobs("images")["retag"]["if"]
    assert workflow("images")["concurrency"] == {"group": "images", "cancel-in-progress": False}


@pytest.mark.parametrize(("name", "job"), [("images", "plan"), ("images", "retag"), ("upstream-watch", "look")])
def test_forks_publish_and_watch_nothing(name: str, job: str) -> None:
    assert OURS in jobs(name)[job]["if"]
    first = {"plan", "retag", "look"}
    assert all(jobs(name)[other].get("needs") for other in jobs(name) if other not in first)


def test_what_comes_from_pypi_runs_without_any_right_or_secret() -> None:
    for name in NAMES:
        for job in jobs(name).values():
            installs = "make " in text(job) or "pip" in text(job)
            trusted = "secrets." in text(job) or any(right == "write" for right in job["permissions"].values())
            assert not (installs and trusted), job["name"]
    assert "make .venv/test.done" in text(jobs("images")["test"])
    assert "secrets.DOCKERHUB_TOKEN" in text(jobs("images")["push"])


def test_an_image_is_pushed_only_if_its_own_test_passed() -> None:
    push, test = jobs("images")["push"], jobs("images")["test"]
    assert push["if"] == jobs("images")["publish"]["if"]
    assert "!cancelled()" in push["if"]
    for job in (push, test):
        assert job["strategy"]["fail-fast"] is False
    (check,) = (step for step in push["steps"] if step.get("name") == "Check that its test passed")
    (kept,) = (step for step in test["steps"] if "upload-artifact" in step.get("uses", ""))
    assert check["with"]["name"] == kept["with"]["name"] == "tested-${{ matrix.image.target }}"
    assert check["if"] == "matrix.image.variant != 'rocm'"


def test_the_plan_is_every_image_and_rocm_is_not_unpacked(tmp_path: Path) -> None:
    targets = [{"target": "cpu-amd64", "variant": "cpu"}, {"target": "rocm", "variant": "rocm"}]
    script(tmp_path, "build", f"assert sys.argv[1:] == ['--matrix']; print({json.dumps(json.dumps(targets))})")
    if shutil.which("jq") is None:
        pytest.skip("no jq on this machine")
    plan = step("images", "plan", "List the images, of bases whose digest is known")
    assert run(plan, tmp_path / "tree", {}).returncode == 0
    told = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert json.loads(told["images"]) == targets
    assert json.loads(told["tested"]) == targets[:1]
    script(tmp_path, "build", "sys.exit('build: the digest of rocm is not known')")
    assert run(plan, tmp_path / "tree", {}).returncode != 0


@pytest.mark.parametrize(("variant", "words"), [("cuda", ["--sbom"]), ("rocm", [])])
def test_rocm_is_pushed_without_being_scanned(variant: str, words: list[str], tmp_path: Path) -> None:
    script(tmp_path, "build", "print(*sys.argv[1:], file=sys.stderr); print('image@sha256:12')")
    settings = {"VARIANT": variant, "PLATFORM": "linux/amd64", "TARGET": variant}
    ended = run(step("images", "push", "Push by digest, with provenance"), tmp_path / "tree", settings)
    assert ended.stderr.split() == ["--variant", variant, "--platform", "linux/amd64", "--push-by-digest", *words]
    assert (tmp_path / "pushed" / variant).read_text() == f"{variant}=sha256:12\n"


@pytest.mark.parametrize("code", [0, 1])
def test_what_is_pushed_reaches_publish_and_its_tag_is_attested_though_another_could_not_be_given(
    code: int, tmp_path: Path
) -> None:
    targets = [base.target for base in Upstream.load().bases]
    (tmp_path / "pushed").mkdir()
    for target in targets:
        (tmp_path / "pushed" / target).write_text(f"{target}=sha256:{target}\n")
    script(
        tmp_path,
        "publish",
        f"print(*sys.argv[1:], 'v2.5.6-r1-arm -> a', 'v2.5.6-r1 -> b', sep='\\n'); sys.exit({code})",
    )
    ended = run(step("images", "publish", "Give the tags"), tmp_path / "tree", {"GITHUB_REF_NAME": "v2.5.6-r1"})
    assert ended.returncode == code
    assert ended.stdout.splitlines()[:-2] == sorted(f"--image={target}=sha256:{target}" for target in targets)
    assert (tmp_path / "output").read_text() == "digest=b\n"


@pytest.mark.parametrize(
    ("newest", "closed", "expected"),
    [
        *[("v99.0.0", "0", "version=v99.0.0\n"), ("v99.0.0", "1", ""), ("v1.0.0", "0", ""), ("same", "0", "")],
        ("v9; rm -rf .", "0", None),
    ],
)
def test_a_release_is_taken_up_if_it_is_newer_and_nobody_has_closed_its_pull_request(
    newest: str, closed: str, expected: str | None, tmp_path: Path
) -> None:
    ours = Upstream.load().version
    (tmp_path / "tree" / "patches").mkdir(parents=True)
    (tmp_path / "tree" / "patches" / "upstream.toml").write_text(f'version = "{ours}"\n')
    (tmp_path / "output").write_text("")
    settings = {"GH_NEWEST": ours if newest == "same" else newest, "GH_CLOSED": closed}
    ended = run(step("upstream-watch", "look", "Find the newest release"), tmp_path / "tree", settings)
    assert ended.returncode == (expected is None), ended.stderr
    assert (tmp_path / "output").read_text() == (expected or "")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with a bump in it that ends as BUMP_CODE says, and its origin."""
    tree, origin = tmp_path / "tree", tmp_path / "origin.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(origin)], check=True)
    subprocess.run(["git", "init", "--quiet", str(tree)], check=True)
    (tree / "VERSION").write_text("v2.5.6-r1\n")
    (tree / "scripts").mkdir()
    (tree / "scripts" / "bump.py").write_text(
        "import os, pathlib, sys\n"
        "if os.environ['BUMP_CODE'] != '1':\n"
        "    pathlib.Path('VERSION').write_text(f'{sys.argv[2]}-r1\\n')\n"
        "print('bump reports', os.environ['BUMP_CODE'])\n"
        "sys.exit(int(os.environ['BUMP_CODE']))\n"
    )
    for words in (["add", "--all"], ["commit", "--quiet", "-m", "first"], ["remote", "add", "origin", str(origin)]):
        subprocess.run([*git(tree), *words], check=True)
    return tree


def git(tree: Path) -> list[str]:
    return ["git", "-C", str(tree), "-c", "user.name=t", "-c", "user.email=t@localhost"]


def bump(tree: Path, code: str) -> str:
    """The step that bumps, and what it says came of it; the tree is then as it was."""
    (tree.parent / "output").write_text("")
    subprocess.run(["rm", "-rf", str(tree.parent / "bump")], check=True)
    settings = {"VERSION": "v2.5.7", "PYTHONDONTWRITEBYTECODE": "1", "BUMP_CODE": code}
    ended = run(step("upstream-watch", "look", "Bump"), tree, settings)
    assert ended.returncode == 0, ended.stderr
    subprocess.run([*git(tree), "reset", "--quiet", "--hard"], check=True)
    written = run(step("upstream-watch", "propose", "Write down what bump reports"), tree, {"VERSION": "v2.5.7"})
    assert written.returncode == 0, written.stderr
    return (tree.parent / "output").read_text()


@pytest.mark.parametrize(("code", "came"), [("0", "yes"), ("3", "gone")])
def test_what_bump_changes_becomes_a_branch_with_its_report_and_is_brought_up_to_date(
    code: str, came: str, tree: Path
) -> None:
    for time, number in enumerate(("", "12")):  # the watch is run twice; then there is a pull request
        assert bump(tree, code) == f"bumped={came}\n"
        push = step("upstream-watch", "propose", "Push the branch, open the pull request, start CI")
        ended = run(push, tree, {"VERSION": "v2.5.7", "GH_OPEN": number, "GONE": ""})
        assert ended.returncode == 0, ended.stderr
        show = ["git", "-C", str(tree.parent / "origin.git"), "show", "bump/v2.5.7:VERSION"]
        assert subprocess.run(show, capture_output=True, text=True, check=True).stdout == "v2.5.7-r1\n"
        calls = (tree.parent / "calls").read_text()
        assert f"bump reports {code}" in calls
        assert ("pr edit 12" in calls) == bool(time)
        assert calls.splitlines()[-1] == "workflow run ci.yml --ref bump/v2.5.7"
        subprocess.run([*git(tree), "checkout", "--quiet", "-"], check=True)
        subprocess.run([*git(tree), "branch", "--quiet", "-D", "bump/v2.5.7"], check=True)
    assert calls.count("pr create") == 1


@pytest.mark.parametrize(("number", "call"), [("", "issue create"), ("7", "issue edit 7")])
def test_where_bump_refuses_an_issue_says_why(number: str, call: str, tree: Path) -> None:
    assert bump(tree, "1") == "bumped=refused\n"
    say = step("upstream-watch", "propose", "Say that bump refuses")
    assert run(say, tree, {"VERSION": "v2.5.7", "GH_ISSUE": number}).returncode == 0
    calls = (tree.parent / "calls").read_text()
    assert call in calls
    assert "bump reports 1" in calls
    steps = {one.get("name"): one.get("if") for one in jobs("upstream-watch")["propose"]["steps"]}
    assert steps["Say that bump refuses"] == "needs.look.outputs.bumped == 'refused'"
    assert steps["Push the branch, open the pull request, start CI"] == "needs.look.outputs.bumped != 'refused'"


def test_an_end_of_bump_that_nobody_expects_stops_the_watch(tree: Path) -> None:
    settings = {"VERSION": "v2.5.7", "BUMP_CODE": "2"}
    assert run(step("upstream-watch", "look", "Bump"), tree, settings).returncode == 2
