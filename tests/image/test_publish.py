# SPDX-License-Identifier: AGPL-3.0-only
"""A release goes to a registry: every image, what names both platforms, the tags; only from a clean tree. The bases are
small images, since nothing of them is run."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.container import docker
from image.registry_server import REPOSITORY, Tree, need_the_tools, registry, release, tree
from scripts.docker import digest, images
from scripts.upstream import Base, Upstream

VERSION, NEXT = "v2.5.6-r1", "v2.5.6-r2"
ENDS = ("", "-arm", "-armnn", "-cuda", "-openvino", "-rknn", "-rocm")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with upstream's version."""
    need_the_tools()
    with registry(tmp_path_factory.mktemp("registry")) as host:
        release(host, "v2.5.6")
        yield host


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, host: str) -> Tree:
    """A tree with the tag VERSION."""
    digests: dict[str, dict[str, str]] = {}
    for variant in Upstream.load().variants:
        there = images(f"{host}/{REPOSITORY}:v2.5.6{variant.suffix}")
        digests[variant.name] = {platform: image.digest for platform, image in there.items()}
    work = tree(tmp_path_factory.mktemp("tree"), host, digests)
    work.git("tag", VERSION)
    return work


def build(work: Tree, base: Base) -> subprocess.CompletedProcess[str]:
    return work.run("build", "--variant", base.variant, "--platform", base.platform, "--push")


def publish(work: Tree, *words: str) -> dict[str, str]:
    """The digest of each tag, as `publish` says it."""
    ended = work.run("publish", *words)
    assert ended.returncode == 0, ended.stderr
    return dict(line.split(" -> ") for line in ended.stdout.splitlines())


@pytest.fixture(scope="module")
def said(work: Tree) -> dict[str, str]:
    """All images built and pushed, and what `publish` says then."""
    for base in work.upstream.bases:
        ended = build(work, base)
        end = base.suffix or "-amd64"
        assert (ended.returncode, ended.stdout) == (0, f"{work.image}:{VERSION}{end}\n"), ended.stderr
    return publish(work)


def test_every_tag_is_there(said: dict[str, str], work: Tree) -> None:
    assert said.keys() == {f"{version}{end}" for version in ("v2.5.6", VERSION) for end in ENDS}
    assert {tag: digest(f"{work.image}:{tag}") for tag in said} == said
    for end in ENDS:
        moving, fixed = (images(f"{work.image}:{version}{end}") for version in ("v2.5.6", VERSION))
        assert moving == fixed


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


def test_to_publish_again_changes_nothing_wherever_the_images_were_pushed(said: dict[str, str], work: Tree) -> None:
    ends = {base.target: base.suffix or "-amd64" for base in work.upstream.bases}
    given = [f"--image={target}={digest(f'{work.image}:{VERSION}{end}')}" for target, end in ends.items()]
    assert publish(work) == publish(work, *given) == said


def refused(work: Tree, *words: str) -> str:
    """What `publish` says, in one line."""
    ended = work.run("publish", *words)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    return ended.stderr.removeprefix("publish: ").strip()


def test_a_variant_that_fails_does_not_hold_back_the_rest(said: dict[str, str], work: Tree) -> None:
    ended = work.run("publish", "--image", f"rocm={said[f'{VERSION}-arm']}")
    assert ended.returncode == 1
    assert ended.stderr == "publish: rocm: the image of rocm is for linux/arm64 and not for linux/amd64\n"
    done = dict(line.split(" -> ") for line in ended.stdout.splitlines())
    assert done == {tag: value for tag, value in said.items() if "rocm" not in tag}


def test_an_image_that_is_published_is_not_pushed_again(said: dict[str, str], work: Tree) -> None:
    ended = build(work, work.upstream.base("cuda"))
    assert ended.returncode == 1
    assert ended.stderr == f"build: {work.image}:{VERSION}-cuda is published already: raise the revision in VERSION\n"


def test_a_fixed_tag_stays_what_it_is(said: dict[str, str], work: Tree) -> None:
    other = digest(f"{work.image}:{VERSION}-openvino")
    line = refused(work, "--variant", "cuda", "--image", f"cuda={other}")
    assert line.startswith(f"cuda: {work.image}:{VERSION}-cuda is published with other content, sha256:")
    assert digest(f"{work.image}:{VERSION}-cuda") == said[f"{VERSION}-cuda"]


def test_what_is_not_the_commit_of_the_tag_is_refused(said: dict[str, str], work: Tree) -> None:
    (added := work.folder / "overlay" / "added.py").touch()
    assert refused(work) == "the tree is not clean: what is published must be what the tag holds"
    ended = work.run("build", "--tag", f"{work.image}:changed")
    added.unlink()
    assert ended.returncode == 0, ended.stderr
    revision = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    assert docker("image", "inspect", f"--format={revision}", f"{work.image}:changed").endswith("-dirty")

    work.git("tag", "--delete", VERSION)
    assert refused(work) == f"this commit does not have the tag {VERSION}, which VERSION says it is"
    work.git("commit", "--quiet", "--allow-empty", "--message=Another")
    work.git("tag", VERSION)
    line = refused(work, "--variant", "rknn")
    assert line.startswith(f"rknn: {work.image}:{VERSION}-rknn was built of commit ")
    work.git("reset", "--quiet", "--hard", "HEAD~1")
    work.git("tag", "--force", VERSION)


def test_a_base_whose_digest_is_not_known_is_not_published(work: Tree, host: str, tmp_path: Path) -> None:
    unknown = tree(tmp_path, host)
    for words in (["--variant", "rocm", "--push"], ["--matrix"]):
        ended = unknown.run("build", *words)
        assert ended.returncode == 1
        assert "is not known, so nobody could tell what was published: `make bump UPSTREAM=v2.5.6`" in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_a_moving_tag_goes_on_and_never_back_but_on_purpose(said: dict[str, str], work: Tree) -> None:
    (work.folder / "VERSION").write_text(f"{NEXT}\n")
    work.git("commit", "--quiet", "--all", "--message=The next")
    work.git("tag", NEXT)
    assert build(work, work.upstream.base("cuda")).returncode == 0
    moved = publish(work, "--variant", "cuda")
    assert images(f"{work.image}:v2.5.6-cuda") == images(f"{work.image}:{NEXT}-cuda")
    assert moved[f"{NEXT}-cuda"] != said[f"{VERSION}-cuda"]

    work.git("checkout", "--quiet", VERSION)
    line = f"cuda: {work.image}:v2.5.6-cuda is at {NEXT} already; `publish --retag {VERSION}` goes back on purpose"
    assert refused(work, "--variant", "cuda") == line
    back = publish(work, "--variant", "cuda", "--retag", VERSION)
    assert back.keys() == {"v2.5.6-cuda"}
    assert images(f"{work.image}:v2.5.6-cuda") == images(f"{work.image}:{VERSION}-cuda")
    line = f"cuda: {work.image}:v2.5.6-r9-cuda was never published"
    assert refused(work, "--variant", "cuda", "--retag", "v2.5.6-r9") == line
