# SPDX-License-Identifier: AGPL-3.0-only
"""Publishes a release to a registry, with the workflows' own steps if they have some: every image whose base digest is
known, the manifest of both platforms, and the tags; only from a clean tree. The bases are tiny, because none is run."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

import workflow_steps
from image.container import docker
from image.registry_server import NO_ARCHIVE, REPOSITORY, Tree, need_the_tools, registry, release, seal, tree
from scripts.docker import digest, images
from scripts.hub import prune
from scripts.registry import Registry
from scripts.upstream import Base, Upstream
from workflow_steps import JOBS, step

VERSION, NEXT, LATER = "v2.5.6-r1", "v2.5.6-r2", "v2.5.6-r3"
UNKNOWN = ("armnn", "rknn", "rocm")
"""Variants whose base digest is not known."""
ENDS = ("", "-arm", "-cuda", "-openvino")
PUSHED = {"cpu-amd64": "-amd64", "cpu-arm64": "-arm", "cuda": "-cuda", "openvino": "-openvino"}
"""Suffixes of the tags under which images are pushed, by target."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with upstream's v2.5.6."""
    need_the_tools()
    with registry(tmp_path_factory.mktemp("registry")) as host:
        release(host, "v2.5.6")
        yield host


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, host: str) -> Tree:
    """A tree with the git tag VERSION."""
    digests: dict[str, dict[str, str]] = {}
    for variant in Upstream.load().variants:
        there = images(f"{host}/{REPOSITORY}:v2.5.6{variant.suffix}")
        digests[variant.name] = {platform: image.digest for platform, image in there.items()}
    known = {variant: of for variant, of in digests.items() if variant not in UNKNOWN}
    (folder := tmp_path_factory.mktemp("publish") / "tree").mkdir()
    work = tree(folder, host, known)
    work.git("tag", VERSION)
    return work


def build(work: Tree, base: Base) -> subprocess.CompletedProcess[str]:
    return work.run("build", "--variant", base.variant, "--platform", base.platform, "--push")


def publish(work: Tree, *words: str) -> dict[str, str]:
    """Runs `publish`; returns the digest of each tag that it prints."""
    ended = work.run("publish", *words)
    assert ended.returncode == 0, ended.stderr
    return dict(line.split(" -> ") for line in ended.stdout.splitlines())


def of_workflow(work: Tree, workflow: str, job: str, title: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a step of a workflow in the tree."""
    given = {"IMAGE": work.image, "HOME": os.environ["HOME"], **settings}
    return workflow_steps.run(step(JOBS[workflow][job], title), work.folder.parent, **given)


def named(ended: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The digest of each tag that a step has set."""
    assert ended.returncode == 0, ended.stderr
    return dict(line.split(" -> ") for line in ended.stdout.splitlines())


@pytest.fixture(scope="module")
def said(work: Tree) -> dict[str, str]:
    """Builds and pushes all images that the workflow plans, and sets the tags with its step. Digests by tag."""
    planned = of_workflow(work, "images", "plan", "List the images whose base digest is known")
    assert planned.returncode == 0, planned.stderr
    assert [line.split()[1] for line in planned.stderr.splitlines()] == list(UNKNOWN)
    listed = (work.folder.parent / "output").read_text().splitlines()[0].removeprefix("images=")
    (pushed := work.folder.parent / "pushed").mkdir()
    for image in json.loads(listed):
        base, target = work.upstream.base(image["variant"], image["platform"]), image["target"]
        ended, name = build(work, base), f"{work.image}:{VERSION}{PUSHED[target]}"
        assert (ended.returncode, ended.stdout) == (0, f"{name}\n"), ended.stderr
        (pushed / target).write_text(f"{target}={digest(name)}\n")
    return named(of_workflow(work, "images", "publish", "Set the tags", GITHUB_REF_NAME=VERSION))


def test_every_tag_is_there(said: dict[str, str], work: Tree) -> None:
    assert said.keys() == {f"{version}{end}" for version in ("v2.5.6", VERSION) for end in ENDS}
    assert {tag: digest(f"{work.image}:{tag}") for tag in said} == said
    for end in ENDS:
        moving, fixed = (images(f"{work.image}:{version}{end}") for version in ("v2.5.6", VERSION))
        assert moving == fixed


def test_a_base_is_not_unpacked(work: Tree, host: str) -> None:
    """AMD's base is 30 GB. The test's base can't be unpacked, so the build would fail if it were."""
    archive, name = work.folder.with_suffix(".tar"), f"{host}/{REPOSITORY}:v2.5.6"
    given = {"args.BASE": seal(host, "v2.5.6-rocm"), "args.SOURCE": name, "output": f"type=oci,dest={archive}"}
    words = [f"--set=rocm.{key}={value}" for key, value in given.items()]
    # without scripts.build, because buildx's docker driver unpacks what it pushes
    subprocess.run(["docker", "buildx", "bake", *words, "rocm"], cwd=work.folder, check=True)
    with tarfile.open(archive) as built:
        assert sha256(NO_ARCHIVE).hexdigest() in {path.rpartition("/")[2] for path in built.getnames()}


def test_upstreams_own_app_comes_from_the_small_base_of_the_same_platform(said: dict[str, str], work: Tree) -> None:
    for base in [base for base in work.upstream.bases if base.target in PUSHED]:
        small = work.upstream.base("cpu", base.platform).digest
        words = ("buildx", "imagetools", "inspect", f"{work.image}:{VERSION}{base.suffix}")
        assert small.partition(":")[2] in docker(*words, "--format={{json .Provenance}}"), base.target


def test_the_plain_tag_is_for_both_platforms_with_the_provenance_of_each(said: dict[str, str], work: Tree) -> None:
    there = images(name := f"{work.image}:{VERSION}")
    assert there.keys() == {"linux/amd64", "linux/arm64"}
    assert there["linux/arm64"] == images(f"{name}-arm")["linux/arm64"]
    manifests = json.loads(docker("buildx", "imagetools", "inspect", "--raw", name))["manifests"]
    attested = {entry.get("annotations", {}).get("vnd.docker.reference.digest") for entry in manifests}
    assert attested - {None} == {image.digest for image in there.values()}
    provenance = json.loads(docker("buildx", "imagetools", "inspect", name, "--format", "{{json .Provenance}}"))
    for platform, image in there.items():
        assert "buildConfig" in str(provenance[platform])
        assert image.labels["org.opencontainers.image.version"] == VERSION
        assert image.labels["org.opencontainers.image.base.digest"].startswith("sha256:")


def test_publishing_again_changes_nothing_however_the_images_were_pushed(said: dict[str, str], work: Tree) -> None:
    given = [f"--image={target}={digest(f'{work.image}:{VERSION}{end}')}" for target, end in PUSHED.items()]
    assert publish(work) == publish(work, *given) == said


def refused(work: Tree, *words: str) -> str:
    """Runs `publish`, which must fail; returns its only line on stderr besides warnings."""
    ended = work.run("publish", *words)
    assert ended.returncode == 1
    (line,) = (line for line in ended.stderr.splitlines() if not line.startswith("warning: "))
    return line.removeprefix("publish: ")


def test_a_variant_that_fails_does_not_hold_back_the_rest(said: dict[str, str], work: Tree) -> None:
    ended = work.run("publish", "--image", f"openvino={said[f'{VERSION}-arm']}")
    assert ended.returncode == 1
    assert "publish: openvino: the image of openvino is for linux/arm64, not for linux/amd64\n" in ended.stderr
    done = dict(line.split(" -> ") for line in ended.stdout.splitlines())
    assert done == {tag: value for tag, value in said.items() if "openvino" not in tag}


def test_an_image_that_is_published_is_not_pushed_again(said: dict[str, str], work: Tree) -> None:
    ended = build(work, work.upstream.base("cuda"))
    assert ended.returncode == 1
    assert ended.stderr == f"build: {work.image}:{VERSION}-cuda is published already: raise the revision in VERSION\n"


def test_a_fixed_tag_never_changes(said: dict[str, str], work: Tree) -> None:
    other = digest(f"{work.image}:{VERSION}-openvino")
    line = refused(work, "--variant", "cuda", "--image", f"cuda={other}")
    assert line.startswith(f"cuda: {work.image}:{VERSION}-cuda is published with other content, sha256:")
    assert digest(f"{work.image}:{VERSION}-cuda") == said[f"{VERSION}-cuda"]


def test_a_commit_other_than_the_tags_is_refused(said: dict[str, str], work: Tree) -> None:
    (added := work.folder / "overlay" / "added.py").touch()
    line = "the tree has uncommitted changes: commit or undo them, then publish from the version tag"
    assert refused(work) == line
    ended = work.run("build", "--tag", f"{work.image}:changed")
    added.unlink()
    assert ended.returncode == 0, ended.stderr
    revision = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    assert docker("image", "inspect", f"--format={revision}", f"{work.image}:changed").endswith("-dirty")

    work.git("tag", "--delete", VERSION)
    assert refused(work) == f"VERSION is {VERSION}, but this commit does not have that tag"
    work.git("commit", "--quiet", "--allow-empty", "--message=Another")
    work.git("tag", VERSION)
    line = refused(work, "--variant", "openvino")
    assert line.startswith(f"openvino: {work.image}:{VERSION}-openvino was built from commit ")
    work.git("reset", "--quiet", "--hard", "HEAD~1")
    work.git("tag", "--force", VERSION)


def test_an_image_whose_base_digest_is_unknown_is_refused(work: Tree) -> None:
    for words in (["build", "--variant", "rocm", "--push"], ["publish", "--variant", "rocm"]):
        ended = work.run(*words)
        assert ended.returncode == 1
        assert "is not known, so its image can't be published: run `make bump UPSTREAM=v2.5.6`" in ended.stderr
        assert ended.stderr.count("\n") == 1


def due(work: Tree) -> list[str]:
    """The outputs of the workflow `latest` if VERSION was released long ago."""
    release = {"tag_name": VERSION, "draft": False, "prerelease": False, "published_at": "2026-01-01T00:00:00Z"}
    github = f"gh() {{ echo '{json.dumps([release])}'; }}\n"
    find = github + step(JOBS["latest"]["due"], "Find the release for latest")
    ended = workflow_steps.run(find, work.folder.parent, IMAGE=work.image, HOME=os.environ["HOME"])
    assert ended.returncode == 0, ended.stderr
    return (work.folder.parent / "output").read_text().splitlines()


def test_latest_moves_to_a_release_and_goes_back_only_with_retag_or_back(
    said: dict[str, str], work: Tree, tmp_path: Path
) -> None:
    """Uses the workflows' own steps. The later release is a single image with that version's label."""
    told = dict(line.split("=", 1) for line in due(work))
    assert told["release"] == VERSION
    assert [image["target"] for image in json.loads(told["images"])] == list(PUSHED)
    move = ("latest", "move", "Move latest and latest-VARIANT")
    first = named(of_workflow(work, *move, RELEASE=VERSION))
    assert first == {f"latest{end}": said[f"{VERSION}{end}"] for end in ENDS}
    assert due(work) == []

    (tmp_path / "Dockerfile").write_text(f"FROM scratch\nLABEL org.opencontainers.image.version={LATER}\n")
    moving, latest = (f"--tag={work.image}:{tag}-cuda" for tag in ("v2.5.6", "latest"))
    docker("buildx", "build", "--push", "--provenance=false", moving, latest, str(tmp_path))
    line = refused(work, "--variant", "cuda", "--latest", VERSION)
    said_why = f"latest-cuda is at {LATER}, which is later; to go back, use `publish --latest {VERSION} --back`"
    assert line.endswith(said_why)
    back = of_workflow(work, "retag", "retag", "Move the moving tags", RELEASE=VERSION, LATEST="false")
    expected = {f"v2.5.6{end}": first[f"latest{end}"] for end in ENDS}
    assert named(back) == {**expected, "latest-cuda": first["latest-cuda"]}
    assert {line.split()[1] for line in back.stderr.splitlines()} == set(UNKNOWN)

    docker("buildx", "build", "--push", "--provenance=false", latest, str(tmp_path))
    assert publish(work, "--variant", "cuda", "--latest", VERSION, "--back") == {"latest-cuda": first["latest-cuda"]}


def test_the_same_digests_are_copied_to_another_registry_except_for_excluded_variants(
    said: dict[str, str], work: Tree, host: str
) -> None:
    there = f"{host}/mirror/mt-photos-ml"
    rocm = "v2.5.6-rocm -> sha256:" + "0" * 64
    told = "".join(f"{tag} -> {value}\n" for tag, value in said.items()) + rocm

    def copied(*lines: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scripts.mirror", "acr", "--to", there]
        given = {**os.environ, "IMAGE": work.image}
        return subprocess.run(
            command, cwd=work.folder, env=given, input="\n".join(lines), capture_output=True, text=True, check=False
        )

    ended = copied(told)
    assert ended.returncode == 0, ended.stderr
    assert {tag: digest(f"{there}:{tag}") for tag in said} == said
    assert digest(f"{there}:v2.5.6-rocm") is None

    other = said[f"{VERSION}-cuda"]
    ended = copied(f"{VERSION}-openvino -> {other}", f"v2.5.6-openvino -> {other}")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"mirror: {VERSION}-openvino: {there}:{VERSION}-openvino has other content, ")
    assert digest(f"{there}:v2.5.6-openvino") == other


def test_prune_deletes_only_images_without_a_tag(said: dict[str, str], work: Tree, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nLABEL never=published\n")
    name = f"{work.image}:failed"
    docker("buildx", "build", "--push", f"--tag={name}", str(tmp_path))
    lost, kept = str(digest(name)), said[f"{VERSION}-cuda"]
    docker("buildx", "build", "--push", f"--tag={name}", "--label=never=kept", str(tmp_path))
    mine = Registry(work.image)
    mine.check_push()
    assert {f"latest{end}" for end in ENDS} | said.keys() <= set(mine.tags())
    assert prune(mine, [lost, kept])[0] == lost
    assert mine.parts(lost) == []
    assert images(f"{work.image}@{lost}") == {}
    assert images(f"{work.image}@{kept}")


def test_a_moving_tag_goes_back_only_with_retag(said: dict[str, str], work: Tree) -> None:
    (work.folder / "VERSION").write_text(f"{NEXT}\n")
    work.git("commit", "--quiet", "--all", "--message=The next")
    work.git("tag", NEXT)
    assert build(work, work.upstream.base("cuda")).returncode == 0
    moved = publish(work, "--variant", "cuda")
    assert images(f"{work.image}:v2.5.6-cuda") == images(f"{work.image}:{NEXT}-cuda")
    assert moved[f"{NEXT}-cuda"] != said[f"{VERSION}-cuda"]

    work.git("checkout", "--quiet", VERSION)
    line = f"cuda: {work.image}:v2.5.6-cuda is at {NEXT}, which is later; to go back, use `publish --retag {VERSION}`"
    assert refused(work, "--variant", "cuda") == line
    back = publish(work, "--variant", "cuda", "--retag", VERSION)
    assert back.keys() == {"v2.5.6-cuda"}
    assert images(f"{work.image}:v2.5.6-cuda") == images(f"{work.image}:{VERSION}-cuda")
    line = f"cuda: {work.image}:v2.5.6-r9-cuda was never published"
    assert refused(work, "--variant", "cuda", "--retag", "v2.5.6-r9") == line
