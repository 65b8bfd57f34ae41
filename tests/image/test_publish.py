# SPDX-License-Identifier: AGPL-3.0-only
"""A release goes to a registry: every image, the manifest of both platforms, the tags; only from a clean tree."""

import shutil
from collections.abc import Iterator

import pytest

from image.container import BASE, docker
from image.registry_server import Tree, registry, release, tree, upstream_at
from image.standin import build as build_standin
from scripts.registry import INDEX, Manifest, Repository

VERSION = "v2.5.6-r1"
ENDS = ("", "-arm", "-armnn", "-cuda", "-openvino", "-rknn", "-rocm")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with upstream's version."""
    if shutil.which("docker") is None or shutil.which("docker-registry") is None:
        pytest.skip("no docker or no docker-registry on this machine")
    build_standin(BASE)
    with registry(tmp_path_factory.mktemp("registry")) as host:
        release(host, BASE, "v2.5.6")
        yield host


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, host: str) -> Iterator[Tree]:
    """A tree with the tag VERSION, and the images that are built of it."""
    work = tree(tmp_path_factory.mktemp("tree"), host, image="mt-photos-ml-test/published")
    work.git("tag", VERSION)
    references = []
    try:
        for base in work.upstream.bases:
            references.append(f"{upstream_at(host)}@{base.reference.rpartition('@')[2]}")
            words = ["--variant", base.variant, "--platform", base.platform, "--base", references[-1]]
            ended = work.run("build", *words)
            assert ended.stdout == f"{work.image}:{VERSION}{base.suffix}\n", ended.stderr
        yield work
    finally:
        listed = docker("images", "--format={{.Repository}}:{{.Tag}}").splitlines()
        ours = [name for name in listed if name.startswith((f"{host}/", f"{work.image}:")) and "<none>" not in name]
        docker("rmi", "--force", *ours, *references, check=False)


@pytest.fixture(scope="module")
def said(work: Tree, host: str) -> dict[str, str]:
    """What `publish` says: the digest of each tag."""
    ended = work.run("publish", "--registry", host, "--insecure")
    assert ended.returncode == 0, ended.stderr
    return dict(line.split(" -> ") for line in ended.stdout.splitlines())


@pytest.fixture
def repository(work: Tree, host: str) -> Repository:
    return Repository.of(work.image, host, insecure=True)


def test_every_tag_is_there(said: dict[str, str], repository: Repository) -> None:
    assert said.keys() == {f"{version}{end}" for version in ("v2.5.6", VERSION) for end in ENDS}
    assert {tag: repository.manifest(tag).digest for tag in said} == said
    assert all(said[f"v2.5.6{end}"] == said[f"{VERSION}{end}"] for end in ENDS)


def test_the_plain_tag_is_for_both_platforms(said: dict[str, str], repository: Repository) -> None:
    index = repository.manifest(VERSION)
    assert index.media_type == INDEX
    images = repository.platforms(index)
    assert images.keys() == {"linux/amd64", "linux/arm64"}
    assert images["linux/arm64"]["digest"] == said[f"{VERSION}-arm"]


@pytest.mark.parametrize("machine", ["amd64", "arm64"])
def test_docker_pulls_the_image_of_its_platform(said: dict[str, str], repository: Repository, machine: str) -> None:
    name = f"{repository}@{said[VERSION]}"
    docker("pull", f"--platform=linux/{machine}", name)
    assert docker("image", "inspect", "--format={{.Architecture}}", name) == machine
    version = '{{index .Config.Labels "org.opencontainers.image.version"}}'
    assert docker("image", "inspect", f"--format={version}", name) == VERSION
    docker("rmi", name)


def test_to_publish_again_changes_nothing(said: dict[str, str], work: Tree, host: str) -> None:
    ended = work.run("publish", "--registry", host, "--insecure")
    assert ended.returncode == 0, ended.stderr
    assert dict(line.split(" -> ") for line in ended.stdout.splitlines()) == said


def test_images_that_were_pushed_elsewhere_are_named_by_their_digests(
    said: dict[str, str], work: Tree, host: str
) -> None:
    ends = {base.target: base.suffix for base in work.upstream.bases}
    amd64 = Repository.of(work.image, host, insecure=True).manifest(f"{VERSION}-amd64").digest
    digests = {target: said[f"{VERSION}{end}"] if end else amd64 for target, end in ends.items()}
    images = [f"--image={target}={digest}" for target, digest in digests.items()]
    ended = work.run("publish", "--registry", host, "--insecure", *images)
    assert dict(line.split(" -> ") for line in ended.stdout.splitlines()) == said, ended.stderr


def test_an_image_for_another_platform_is_refused(said: dict[str, str], work: Tree, host: str) -> None:
    images = ["--image", f"cpu-arm64={said[f'{VERSION}-cuda']}"]
    ended = work.run("publish", "--registry", host, "--insecure", *images)
    assert ended.returncode == 1
    assert ended.stderr == "publish: the image of cpu-arm64 is for linux/amd64 and not for linux/arm64\n"


def test_a_fixed_tag_stays_what_it_is(said: dict[str, str], work: Tree, host: str, repository: Repository) -> None:
    published = repository.manifest(f"{VERSION}-rocm")
    other = Manifest(published.media_type, published.raw + b"\n")
    repository.put_manifest(f"{VERSION}-rocm", other)
    ended = work.run("publish", "--registry", host, "--insecure")
    repository.put_manifest(f"{VERSION}-rocm", published)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"publish: {VERSION}-rocm is published with other content, {other.digest}: raise the revision in VERSION\n"
    )


def test_a_tree_with_changes_is_refused(work: Tree, host: str) -> None:
    changed = work.folder / "README.md"
    text = changed.read_text()
    changed.write_text(text + "\n")
    ended = work.run("publish", "--registry", host, "--insecure")
    changed.write_text(text)
    assert ended.returncode == 1
    assert ended.stderr == "publish: the tree is not clean: what is published must be what the tag holds\n"


def test_a_commit_without_the_tag_is_refused(work: Tree, host: str) -> None:
    work.git("tag", "--delete", VERSION)
    ended = work.run("publish", "--registry", host, "--insecure")
    work.git("tag", VERSION)
    assert ended.returncode == 1
    assert ended.stderr == f"publish: this commit does not have the tag {VERSION}, which VERSION says it is\n"


def test_an_image_of_a_tree_with_changes_says_so(work: Tree) -> None:
    added = work.folder / "overlay" / "added.py"
    added.write_text("")
    ended = work.run("build", "--base", BASE, "--tag", f"{work.image}:changed")
    added.unlink()
    assert ended.returncode == 0, ended.stderr
    revision = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    assert docker("image", "inspect", f"--format={revision}", f"{work.image}:changed").endswith("-dirty")


def test_images_of_another_commit_are_refused(work: Tree, host: str) -> None:
    work.git("tag", "--delete", VERSION)
    work.git("commit", "--quiet", "--allow-empty", "--message=Another")
    work.git("tag", VERSION)
    ended = work.run("publish", "--registry", host, "--insecure")
    work.git("tag", "--delete", VERSION)
    work.git("reset", "--quiet", "--hard", "HEAD~1")
    work.git("tag", VERSION)
    assert ended.returncode == 1
    assert "was built of commit " in ended.stderr
