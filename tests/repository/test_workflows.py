# SPDX-License-Identifier: AGPL-3.0-only
"""The workflows: what each may publish, and how their steps run, with a stand-in for the gh command."""

import base64
import gzip
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.mirror import MIRRORS
from scripts.upstream import Upstream
from workflow_steps import JOBS, WORKFLOWS, run, step

IMAGES, WATCH = JOBS["images"], JOBS["upstream-watch"]


def script(folder: Path, name: str, source: str) -> None:
    """Writes a stand-in for one of scripts/ into the folder in which steps run."""
    (folder / "tree" / "scripts").mkdir(parents=True, exist_ok=True)
    (folder / "tree" / "scripts" / f"{name}.py").write_text(f"import sys\n{source}\n")


def test_only_a_version_tag_or_a_person_publishes_and_only_in_our_repository() -> None:
    events = {name: workflow[True] for name, workflow in WORKFLOWS.items()}  # YAML 1.1 reads `on` as true
    assert events["images"] == {"push": {"tags": ["v*"]}}
    assert events["retag"].keys() == {"workflow_dispatch"}
    for name in ("images", "retag", "latest", "upkeep", "upstream-watch"):
        for job in JOBS[name].values():
            assert job.get("needs") or "github.repository == 'dev-fox-101/mt-photos-ml'" in job["if"], job["name"]


def test_retag_shares_no_group_and_no_environment_with_a_release() -> None:
    """The release's environment is limited to tags, and only one run of a concurrency group runs at a time."""
    groups = [workflow["concurrency"]["group"] for workflow in WORKFLOWS.values() if "concurrency" in workflow]
    assert len(set(groups)) == len(groups)
    of_releases = {job.get("environment") for job in IMAGES.values()}
    assert JOBS["retag"]["retag"]["environment"] not in of_releases
    assert JOBS["latest"]["move"]["environment"] not in of_releases


def test_the_login_is_checked_before_anything_is_built() -> None:
    before = str(IMAGES["plan"]["steps"])
    assert "scripts.hub login" in before
    assert IMAGES["plan"]["environment"] == IMAGES["push"]["environment"]
    assert IMAGES["test"]["needs"] == "plan"


def test_latest_waits_for_the_contract_tests_on_the_published_images() -> None:
    latest = JOBS["latest"]
    assert "contract" in latest["move"]["needs"]
    assert "if" not in latest["move"]  # a job whose needs fail is skipped
    assert 'scripts.contract "$REFERENCE"' in step(latest["contract"], "Test the published image")


@pytest.mark.parametrize(("workflow", "job"), [("images", "publish"), ("retag", "retag"), ("latest", "move")])
def test_every_workflow_that_sets_tags_copies_them_to_the_other_registries(workflow: str, job: str) -> None:
    mirror = JOBS[workflow]["mirror"]
    assert (mirror["needs"], mirror["uses"]) == (job, "./.github/workflows/mirror.yml")
    (copy,) = JOBS["mirror"].values()
    assert copy["continue-on-error"] is True
    assert [entry["mirror"] for entry in copy["strategy"]["matrix"]["include"]] == list(MIRRORS)
    for entry in copy["strategy"]["matrix"]["include"]:
        assert MIRRORS[entry["mirror"]].repository.startswith(f"{entry['registry']}/")
    assert all(step["if"] == "env.PASSWORD != ''" for step in copy["steps"][2:])


def test_a_job_that_installs_from_pypi_has_no_secret_and_can_write_nothing() -> None:
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
def test_publish_gets_every_pushed_image_and_its_digest_is_attested_even_if_a_tag_fails(
    code: int, tmp_path: Path
) -> None:
    (tmp_path / "pushed").mkdir()
    for target in ("cpu-amd64", "cuda"):
        (tmp_path / "pushed" / target).write_text(f"{target}=sha256:{target}\n")
    said = "*sys.argv[1:], 'v2.5.6-r1-arm -> a', 'v2.5.6-r1 -> b'"
    script(tmp_path, "publish", f"print({said}, sep='\\n'); sys.exit({code})")
    ended = run(step(IMAGES["publish"], "Set the tags"), tmp_path, GITHUB_REF_NAME="v2.5.6-r1")
    assert ended.returncode == code
    assert ended.stdout.splitlines()[:-2] == ["--image=cpu-amd64=sha256:cpu-amd64", "--image=cuda=sha256:cuda"]
    assert (tmp_path / "output").read_text() == "digest=b\nnamed=yes\n"


OURS = Upstream.load().version


@pytest.mark.parametrize(
    ("newest", "closed", "expected"),
    [
        *[("v99.0.0", "0", "version=v99.0.0\n"), ("v99.0.0", "1", "")],
        *[(older, "0", f"version={OURS}\n") for older in ("v1.0.0", OURS)],  # to find missing images of our version
        ("v9; rm -rf .", "0", None),
    ],
)
def test_the_newest_release_is_proposed_unless_its_pull_request_was_closed(
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


def bump(folder: Path, code: int, writes: str = "sys.argv[2]") -> str:
    """Runs the steps around a stand-in for bump with this exit code; returns the outputs of the first step.

    writes: an expression for bump's new VERSION. The tree is a checkout whose origin has an older branch of this bump.
    """
    source = f"pathlib.Path('VERSION').write_text({writes}); print('bump reports {code}'); sys.exit({code})"
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
    written = run(step(WATCH["propose"], "Write the text from bump's report"), folder, VERSION="v2.5.7")
    assert (ended.returncode, written.returncode) == (0 if told else code, 0), ended.stderr
    return told


@pytest.mark.parametrize(
    ("code", "came", "number", "call"), [(0, "yes", "", "pr create"), (3, "gone", "12", "pr edit 12")]
)
def test_bumps_changes_become_a_pull_request_that_later_runs_update(
    code: int, came: str, number: str, call: str, tmp_path: Path
) -> None:
    assert bump(tmp_path, code) == f"bumped={came}\npropose=yes\n"
    push = step(WATCH["propose"], "Push the branch, open the pull request, start the tests")
    ended = run(push, tmp_path, VERSION="v2.5.7", GH_OPEN=number, GONE="")
    assert ended.returncode == 0, ended.stderr
    assert git(tmp_path / "origin.git", "show", f"{BRANCH}:VERSION") == "v2.5.7"
    calls = (tmp_path / "calls").read_text()
    assert f"bump reports {code}" in calls
    assert [each for each in ("pr create", "pr edit 12") if each in calls] == [call]
    started = ("ci.yml", "real-base.yml")
    assert calls.splitlines()[-2:] == [f"workflow run {name} --ref bump/v2.5.7" for name in started]
    assert all("workflow_dispatch" in WORKFLOWS[name.removesuffix(".yml")][True] for name in started)


@pytest.mark.parametrize(("number", "call"), [("", "issue create"), ("7", "issue edit 7")])
def test_if_bump_refuses_an_issue_says_why(number: str, call: str, tmp_path: Path) -> None:
    assert bump(tmp_path, 1) == "bumped=refused\npropose=yes\n"
    assert (
        run(
            step(WATCH["propose"], "Open an issue if bump refuses"), tmp_path, VERSION="v2.5.7", GH_ISSUE=number
        ).returncode
        == 0
    )
    calls = (tmp_path / "calls").read_text()
    assert call in calls
    assert "bump reports 1" in calls


def test_an_unexpected_exit_code_of_bump_stops_the_watch(tmp_path: Path) -> None:
    assert bump(tmp_path, 2) == ""


def test_a_bump_that_changes_nothing_opens_no_pull_request(tmp_path: Path) -> None:
    assert bump(tmp_path, 0, writes="'v2.5.6'") == "bumped=yes\n"


@pytest.mark.parametrize(("there", "call"), [(False, "release create"), (True, "release edit")])
def test_a_release_on_github_is_created_once_and_then_updated(there: bool, call: str, tmp_path: Path) -> None:
    script(tmp_path, "release", "print('notes of', sys.stdin.read())")
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "tags").write_text("v2.5.6-r1 -> b")
    make = step(IMAGES["release"], "Create the release, or update its text")
    view = f'gh() {{ if [ "$2" = view ]; then {str(there).lower()}; else command gh "$@"; fi; }}\n'
    ended = run(view + make, tmp_path, GITHUB_REF_NAME="v2.5.6-r1")
    assert ended.returncode == 0, ended.stderr
    calls = (tmp_path / "calls").read_text()
    assert calls.startswith(f"{call} v2.5.6-r1 ")
    assert "notes of v2.5.6-r1 -> b" in calls


@pytest.mark.parametrize(("code", "said", "opened"), [(0, "ends soon", True), (1, "refused", True), (0, "", False)])
def test_a_token_that_ends_soon_or_is_refused_becomes_an_issue(
    code: int, said: str, opened: bool, tmp_path: Path
) -> None:
    script(tmp_path, "hub", f"print({said!r}, end='', file=sys.stderr); sys.exit({code})")
    ended = run(step(JOBS["upkeep"]["token"], "Open an issue before the token expires"), tmp_path, GH_ISSUE="0")
    assert ended.returncode == code
    assert ("issue create" in (tmp_path / "calls").read_text() if said else False) == opened


def test_prune_gets_the_images_that_earlier_runs_pushed(tmp_path: Path) -> None:
    script(tmp_path, "hub", "print(*sys.argv[1:])")
    runs = """gh() {
      if [ "$1" = api ]; then printf '7\\n8\\n9\\n'; return; fi
      if [ "$3" = 8 ]; then return 1; fi # its artifacts have expired
      mkdir -p "${@: -1}/pushed-cuda" && echo "cuda=sha256:$3" > "${@: -1}/pushed-cuda/cuda"
    }
    """
    ended = run(runs + step(JOBS["upkeep"]["page"], "Delete images that got no tag within a week"), tmp_path)
    assert ended.returncode == 0, ended.stderr
    asked, *digests = ended.stdout.split()
    assert (asked, sorted(digests)) == ("prune", ["sha256:7", "sha256:9"])
    nothing = "gh() { :; }\n" + step(JOBS["upkeep"]["page"], "Delete images that got no tag within a week")
    (tmp_path / "another" / "tree").mkdir(parents=True)
    assert run(nothing, tmp_path / "another").returncode == 0


def test_scan_results_are_uploaded_under_the_name_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "sarif.json").write_text('{"runs": [{"results": []}]}')
    show = step(JOBS["upkeep"]["scan"], "Show the results")
    where = {"GITHUB_REPOSITORY": "a/b", "GITHUB_SHA": "12", "GITHUB_REF": "refs/heads/main", "IMAGE_NAME": "cuda"}
    ended = run(show, tmp_path, SARIF=str(tmp_path / "sarif.json"), **where)
    assert ended.returncode == 0, ended.stderr
    call, _, body = (tmp_path / "calls").read_text().partition("\n")
    assert call == "api --method POST repos/a/b/code-scanning/sarifs --input -"
    told = json.loads(body)
    assert (told["commit_sha"], told["ref"]) == ("12", "refs/heads/main")
    sarif = json.loads(gzip.decompress(base64.b64decode(told["sarif"])))
    assert sarif["runs"][0]["automationDetails"]["id"] == "image/cuda"
