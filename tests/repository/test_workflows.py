# SPDX-License-Identifier: AGPL-3.0-only
"""The workflows: who may publish what, and their steps run with a stand-in for GitHub's command."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.upstream import ROOT, Upstream

WORKFLOWS: dict[str, dict[Any, Any]] = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").iterdir()
}
IMAGES, WATCH = (WORKFLOWS[name]["jobs"] for name in ("images", "upstream-watch"))

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


def step(job: dict[str, Any], title: str) -> str:
    """The program of the job's step with this name."""
    return next(str(step["run"]) for step in job["steps"] if step.get("name") == title)


def run(program: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """A step as a runner would run it, in folder/tree, with a `gh` that notes in folder/calls what it is asked."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "gh").write_text(GH)
    (tools / "gh").chmod(0o755)
    (tools / "python3").unlink(missing_ok=True)
    (tools / "python3").symlink_to(sys.executable)
    (folder / "output").write_text("")
    given = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(folder),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GH_CALLS": str(folder / "calls"),
        "RUNNER_TEMP": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        **settings,
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", program]
    return subprocess.run(command, cwd=folder / "tree", env=given, capture_output=True, text=True, timeout=60)


def script(folder: Path, name: str, source: str) -> None:
    """Stands in for one of scripts/, in the folder that steps run in."""
    (folder / "tree" / "scripts").mkdir(parents=True, exist_ok=True)
    (folder / "tree" / "scripts" / f"{name}.py").write_text(f"import sys\n{source}\n")


def test_only_a_version_tag_or_a_person_publishes_and_only_in_our_repository() -> None:
    events = WORKFLOWS["images"][True]  # YAML 1.1 reads `on` so
    assert (events.keys(), events["push"]) == ({"push", "workflow_dispatch"}, {"tags": ["v*"]})
    assert "github.event_name == 'push'" in IMAGES["plan"]["if"]
    assert "github.event_name == 'workflow_dispatch'" in IMAGES["retag"]["if"]
    for job in (*IMAGES.values(), *WATCH.values()):
        assert job.get("needs") or "github.repository == 'dev-fox-101/mt-photos-ml'" in job["if"], job["name"]


def test_what_comes_from_pypi_runs_without_any_right_or_secret() -> None:
    installing = []
    for job in (job for workflow in WORKFLOWS.values() for job in workflow["jobs"].values()):
        does = yaml.safe_dump(job, width=10_000)
        if "make " in does or "pip" in does:
            installing.append(job)
            assert "secrets." not in does, job["name"]
            assert "write" not in job["permissions"].values(), job["name"]
    assert IMAGES["test"] in installing


def test_an_image_is_pushed_only_if_its_own_test_passed() -> None:
    push, test = IMAGES["push"], IMAGES["test"]
    assert push["strategy"]["fail-fast"] is test["strategy"]["fail-fast"] is False
    (check,) = (step for step in push["steps"] if step.get("name") == "Check that its test passed")
    (kept,) = (step for step in test["steps"] if "upload-artifact" in step.get("uses", ""))
    assert check["with"]["name"] == kept["with"]["name"]
    assert check["if"] == "matrix.image.variant != 'rocm'"


@pytest.mark.parametrize("code", [0, 1])
def test_what_is_pushed_reaches_publish_and_its_tag_is_attested_though_another_could_not_be_given(
    code: int, tmp_path: Path
) -> None:
    (tmp_path / "pushed").mkdir()
    for target in ("cpu-amd64", "cuda"):
        (tmp_path / "pushed" / target).write_text(f"{target}=sha256:{target}\n")
    said = "*sys.argv[1:], 'v2.5.6-r1-arm -> a', 'v2.5.6-r1 -> b'"
    script(tmp_path, "publish", f"print({said}, sep='\\n'); sys.exit({code})")
    ended = run(step(IMAGES["publish"], "Give the tags"), tmp_path, GITHUB_REF_NAME="v2.5.6-r1")
    assert ended.returncode == code
    assert ended.stdout.splitlines()[:-2] == ["--image=cpu-amd64=sha256:cpu-amd64", "--image=cuda=sha256:cuda"]
    assert (tmp_path / "output").read_text() == "digest=b\n"


OURS = Upstream.load().version


@pytest.mark.parametrize(
    ("newest", "closed", "expected"),
    [
        *[("v99.0.0", "0", "version=v99.0.0\n"), ("v99.0.0", "1", ""), ("v1.0.0", "0", ""), (OURS, "0", "")],
        ("v9; rm -rf .", "0", None),
    ],
)
def test_a_release_is_taken_up_if_it_is_newer_and_nobody_has_closed_its_pull_request(
    newest: str, closed: str, expected: str | None, tmp_path: Path
) -> None:
    (tmp_path / "tree" / "patches").mkdir(parents=True)
    (tmp_path / "tree" / "patches" / "upstream.toml").write_text(f'version = "{OURS}"\n')
    ended = run(step(WATCH["look"], "Find the newest release"), tmp_path, GH_NEWEST=newest, GH_CLOSED=closed)
    assert ended.returncode == (expected is None), ended.stderr
    assert (tmp_path / "output").read_text() == (expected or "")


BRANCH = "refs/heads/bump/v2.5.7"


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def bump(folder: Path, code: int) -> str:
    """Runs the steps of a bump that ends with this code; gives what the first says came of it.

    The tree is a checkout then, whose origin has an older branch of the same bump.
    """
    source = f"pathlib.Path('VERSION').write_text(sys.argv[2]); print('bump reports {code}'); sys.exit({code})"
    script(folder, "bump", f"import pathlib\n{source}")
    tree = folder / "tree"
    git(folder, "init", "--quiet", "--bare", "origin.git")
    git(tree, "init", "--quiet")
    git(tree, "remote", "add", "origin", str(folder / "origin.git"))
    (tree / "VERSION").write_text("v2.5.6")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "-m", "first")
    git(tree, "push", "--quiet", "origin", f"{git(tree, 'commit-tree', 'HEAD^{tree}', '-m', 'older').strip()}:{BRANCH}")
    ended = run(step(WATCH["look"], "Bump"), folder, VERSION="v2.5.7")
    told = (folder / "output").read_text()
    git(tree, "reset", "--quiet", "--hard")
    written = run(step(WATCH["propose"], "Write down what bump reports"), folder, VERSION="v2.5.7")
    assert (ended.returncode, written.returncode) == (0 if told else code, 0), ended.stderr
    return told


@pytest.mark.parametrize(
    ("code", "came", "number", "call"), [(0, "yes", "", "pr create"), (3, "gone", "12", "pr edit 12")]
)
def test_what_bump_changes_becomes_a_branch_with_its_report_and_is_brought_up_to_date(
    code: int, came: str, number: str, call: str, tmp_path: Path
) -> None:
    assert bump(tmp_path, code) == f"bumped={came}\n"
    push = step(WATCH["propose"], "Push the branch, open the pull request, start CI")
    ended = run(push, tmp_path, VERSION="v2.5.7", GH_OPEN=number, GONE="")
    assert ended.returncode == 0, ended.stderr
    assert git(tmp_path / "origin.git", "show", f"{BRANCH}:VERSION") == "v2.5.7"
    calls = (tmp_path / "calls").read_text()
    assert f"bump reports {code}" in calls
    assert [each for each in ("pr create", "pr edit 12") if each in calls] == [call]
    assert calls.splitlines()[-1] == "workflow run ci.yml --ref bump/v2.5.7"


@pytest.mark.parametrize(("number", "call"), [("", "issue create"), ("7", "issue edit 7")])
def test_where_bump_refuses_an_issue_says_why(number: str, call: str, tmp_path: Path) -> None:
    assert bump(tmp_path, 1) == "bumped=refused\n"
    assert (
        run(step(WATCH["propose"], "Say that bump refuses"), tmp_path, VERSION="v2.5.7", GH_ISSUE=number).returncode
        == 0
    )
    calls = (tmp_path / "calls").read_text()
    assert call in calls
    assert "bump reports 1" in calls


def test_an_end_of_bump_that_nobody_expects_stops_the_watch(tmp_path: Path) -> None:
    assert bump(tmp_path, 2) == ""
