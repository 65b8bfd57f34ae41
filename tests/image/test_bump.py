# SPDX-License-Identifier: AGPL-3.0-only
"""A bump from one version of the stand-in to the next, in a registry that speaks HTTP and nothing else."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.container import BASE, CHANGED
from image.registry_server import Tree, registry, release, tree, upstream_at
from image.standin import build as build_standin
from scripts.upstream import Upstream


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with two versions of upstream."""
    if shutil.which("docker") is None or shutil.which("docker-registry") is None:
        pytest.skip("no docker or no docker-registry on this machine")
    build_standin(BASE)
    build_standin(CHANGED, changed=True)
    with registry(tmp_path_factory.mktemp("registry")) as host:
        release(host, BASE, "v2.5.6")
        release(host, CHANGED, "v2.5.7")
        release(host, BASE, "v2.5.8")
        yield host


@pytest.fixture
def work(tmp_path: Path, host: str) -> Tree:
    return tree(tmp_path, host)


def test_a_renamed_function_is_named_and_nothing_is_written(work: Tree, host: str) -> None:
    before = work.upstream
    ended = work.run("bump", "v2.5.7", "--registry", host, "--insecure")
    assert ended.returncode == 3, ended.stderr
    assert "GONE: immich_ml.main.load is gone; load_model, which is new there, looks like it" in ended.stdout
    assert "LOOK: immich_ml/main.py, which ours replaces, has changed:" in ended.stdout
    assert "nothing is written" in ended.stdout
    assert work.upstream == before
    assert (work.folder / "VERSION").read_text() == "v2.5.6-r1\n"


def test_by_force_it_is_written_all_the_same(work: Tree, host: str) -> None:
    ended = work.run("bump", "v2.5.7", "--registry", host, "--insecure", "--force")
    assert ended.returncode == 3
    assert "load_model" in ended.stdout
    assert work.upstream.version == "v2.5.7"
    assert (work.folder / "VERSION").read_text() == "v2.5.7-r1\n"


def test_a_release_that_changes_nothing_of_ours_is_written(work: Tree, host: str) -> None:
    ended = work.run("bump", "v2.5.8", "--registry", host, "--insecure")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "every name that we use and every file that ours replaces is as it was" in ended.stdout
    upstream, repository = work.upstream, upstream_at(host)
    assert (upstream.repository, upstream.version) == (Upstream.load().repository, "v2.5.8")
    assert (work.folder / "VERSION").read_text() == "v2.5.8-r1\n"
    for variant in upstream.variants:
        images = repository.platforms(repository.manifest(f"v2.5.8{variant.suffix}"))
        assert variant.digests == {platform: images[platform]["digest"] for platform in variant.platforms}


def test_a_variant_that_is_missing_is_refused_in_one_line(work: Tree, host: str) -> None:
    repository = upstream_at(host)
    cuda = repository.manifest("v2.5.6-cuda")
    for variant in work.upstream.variants:
        if variant.name != "rocm":
            repository.put_manifest(f"v2.5.9{variant.suffix}", cuda)
    ended = work.run("bump", "v2.5.9", "--registry", host, "--insecure")
    assert ended.returncode == 1
    missing = "v2.5.9 for linux/arm64, v2.5.9-armnn for linux/arm64, v2.5.9-rknn for linux/arm64, v2.5.9-rocm"
    assert ended.stderr == f"bump: {repository} lacks {missing}\n"
    assert work.upstream.version == "v2.5.6"


def test_what_is_no_version_is_refused(work: Tree, host: str) -> None:
    ended = work.run("bump", "2.5.7", "--registry", host, "--insecure")
    assert (ended.returncode, ended.stderr) == (1, "bump: '2.5.7' is not a version like v2.5.7\n")


def test_a_registry_that_cannot_be_reached_is_named(work: Tree) -> None:
    ended = work.run("bump", "v2.5.7", "--registry", "127.0.0.1:9", "--insecure")
    assert ended.returncode == 1
    assert ended.stderr.startswith("bump: 127.0.0.1:9 can't be reached: ")
    assert ended.stderr.count("\n") == 1
