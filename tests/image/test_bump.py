# SPDX-License-Identifier: AGPL-3.0-only
"""Bumps from one stand-in in a registry to the next: the report lists the changes, those we rely on first."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from image.container import docker
from image.registry_server import OLD, REPOSITORY, Tree, need_the_tools, push, registry, release, tree
from scripts.docker import images
from scripts.tags import PAGES
from scripts.upstream import Upstream

GONE, RELIED, BESIDES = "WE RELY ON THIS AND IT IS GONE:", "we rely on this and it changed:", "changed besides:"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with upstream's versions: 2.5.6, which is recorded; 2.5.8, the same images; and later ones."""
    need_the_tools()
    with registry(tmp_path_factory.mktemp("registry")) as host:
        release(host, "v2.5.6")
        for variant in Upstream.load().variants:
            name = f"{host}/{REPOSITORY}"
            old, new = (f"{name}:{version}{variant.suffix}" for version in ("v2.5.6", "v2.5.8"))
            docker("buildx", "imagetools", "create", f"--tag={new}", old)
        release(host, "v2.6.0", bare=True)
        release(host, "v3.0.3", "v3.0.3")
        release(host, "v3.3.0", "v3.3.0", leave_out=("rocm", "armnn"))
        for ending in ("-cuda13", "-rc1-cuda"):
            docker("buildx", "imagetools", "create", f"--tag={name}:v3.3.0{ending}", f"{name}:v3.3.0-cuda")
        yield host


@pytest.fixture
def work(tmp_path: Path, host: str) -> Tree:
    return tree(tmp_path, host)


@pytest.fixture(scope="module")
def to_v3_0_3(tmp_path_factory: pytest.TempPathFactory, host: str) -> tuple[Tree, dict[str, list[str]]]:
    """A tree after the bump, and its report."""
    work = tree(tmp_path_factory.mktemp("tree"), host)
    return work, bump(work, "v3.0.3")


@pytest.fixture(scope="module")
def to_v3_3(tmp_path_factory: pytest.TempPathFactory, host: str) -> tuple[Tree, dict[str, list[str]]]:
    """A tree after the bump, and its report."""
    work = tree(tmp_path_factory.mktemp("tree"), host)
    return work, bump(work, "v3.3.0")


def bump(work: Tree, version: str, *words: str, code: int = 0) -> dict[str, list[str]]:
    """Runs bump and returns its report, by heading."""
    ended = work.run("bump", version, *words)
    assert ended.returncode == code, ended.stdout + ended.stderr
    parts: dict[str, list[str]] = {}
    for part in ended.stdout.split("\n\n"):
        title, _, rest = part.partition("\n- ")
        parts[title] = rest.split("\n- ") if rest else []
    return parts


def test_a_release_that_changes_nothing_is_written_with_its_digests(work: Tree, host: str) -> None:
    said = bump(work, "v2.5.8")
    assert "sources, configuration and libraries are unchanged" in said
    upstream = work.upstream
    assert upstream.version == "v2.5.8"
    assert (work.folder / "VERSION").read_text() == "v2.5.8-r1\n"
    assert 'variable "UPSTREAM" { default = "v2.5.8" }' in (work.folder / "docker-bake.hcl").read_text()
    for variant in upstream.variants:
        there = images(f"{host}/{REPOSITORY}:v2.5.8{variant.suffix}")
        assert variant.digests == {platform: there[platform].digest for platform in variant.platforms}


def test_a_bump_to_the_same_version_finds_late_images_and_raises_a_published_revision(work: Tree) -> None:
    bump(work, "v2.5.6")
    assert all(base.digest for base in work.upstream.bases)
    assert (work.folder / "VERSION").read_text() == "v2.5.6-r1\n"

    variants = tuple(replace(v, digests={}) if v.name == "armnn" else v for v in work.upstream.variants)
    (work.folder / "patches" / "upstream.toml").write_text(replace(work.upstream, variants=variants).text())
    push(f"{work.image}:v2.5.6-r1", "linux/amd64")
    bump(work, "v2.5.6")
    assert (work.folder / "VERSION").read_text() == "v2.5.6-r2\n"
    assert "\n## v2.5.6-r2 - not released\n\n### Changed\n\n- Images of" in (work.folder / "CHANGELOG.md").read_text()


TAG = re.compile(r"(?<=[`:])v\d+\.\d+\.\d+[\w-]*")


def test_the_tags_in_the_docs_are_updated_except_for_a_missing_variant(
    to_v3_3: tuple[Tree, dict[str, list[str]]],
) -> None:
    work, _ = to_v3_3
    for page in PAGES:
        before = TAG.findall(work.git("show", f"HEAD:{page}"))
        stay = [tag for tag in before if tag.endswith(("-rocm", "-armnn"))]
        now = [tag if tag in stay else tag.replace(OLD, "v3.3.0") for tag in before]
        assert TAG.findall((work.folder / page).read_text()) == now
        assert before


def test_the_tree_after_a_bump_passes_the_tests_of_the_repository(
    to_v3_3: tuple[Tree, dict[str, list[str]]], host: str
) -> None:
    """Runs those that check files that bump writes."""
    work, _ = to_v3_3
    record = work.folder / "patches" / "upstream.toml"
    record.write_text((before := record.read_text()).replace(host, "ghcr.io"))
    tests = [f"tests/repository/test_{name}.py" for name in ("compose", "scripts", "docs")]
    chosen = "(readme or variant or unraid or changelog or accounted or bump or target) and not command and not starts"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", chosen, *tests]
    ended = subprocess.run(command, cwd=work.folder, capture_output=True, text=True, check=False)
    record.write_text(before)
    assert ended.returncode == 0, ended.stdout


def test_a_variant_that_upstream_adds_is_reported_once(
    to_v3_3: tuple[Tree, dict[str, list[str]]],
) -> None:
    work, said = to_v3_3
    assert said["published, and nothing is built on it:"] == ["-cuda13: docs/maintaining.md says how to add a variant"]
    assert work.upstream.unused == ("-cuda13",)
    assert work.upstream.text() == (work.folder / "patches" / "upstream.toml").read_text()
    before = work.git("diff")
    assert bump(work, "v3.3.0").keys() == {"immich-machine-learning v3.3.0: nothing is new\n"}
    assert work.git("diff") == before


def test_what_bump_read_is_recorded(to_v3_0_3: tuple[Tree, dict[str, list[str]]]) -> None:
    work, _ = to_v3_0_3
    kept = json.loads((work.folder / "patches" / "upstream.json").read_text())
    assert kept["libraries"]["pillow"] == "12.2.0"
    assert kept["before"] == OLD
    assert "library: pillow 10.4.0 -> 12.2.0" in kept["changes"]
    assert kept["python"].startswith("3.11")
    assert len(kept["files"]["immich_ml/main.py"]) == 64
    here = kept["configuration"]["cpu-amd64"]
    assert (here["WorkingDir"], here["Entrypoint"]) == ("/usr/src", ["tini", "--"])
    assert here["Healthcheck"]["Test"] == ["CMD-SHELL", "python3 healthcheck.py"]
    assert kept["configuration"]["openvino"]["Cmd"] == ["python", "-m", "immich_ml"]


def test_libraries_that_we_import_come_first_and_a_changed_file_has_its_diff(
    to_v3_0_3: tuple[Tree, dict[str, list[str]]],
) -> None:
    work, said = to_v3_0_3
    assert GONE not in said
    assert "library: pillow 10.4.0 -> 12.2.0" in said[RELIED]
    assert "library: gunicorn 23.0.0 -> 25.3.0" in said[RELIED]
    assert "library: onnxruntime 1.23.2 -> 1.26.0" in said[RELIED]
    assert "library gone: ftfy 6.3.1" in said[BESIDES]
    (start,) = [text for text in said[BESIDES] if text.startswith("changed: immich_ml/__main__.py")]
    assert '  +arguments = [*(part for option in options.items() for part in option), "--no-control-socket"]' in start
    assert not any("immich_ml/main.py" in text for texts in said.values() for text in texts)
    assert work.upstream.version == "v3.0.3"


def test_a_release_with_newer_python_syntax_is_compared_too(
    to_v3_3: tuple[Tree, dict[str, list[str]]],
) -> None:
    work, said = to_v3_3
    assert GONE not in said
    (main,) = [text for text in said[RELIED] if text.startswith("changed: immich_ml/main.py")]
    assert "+type Seconds = float" in main
    assert any(text.startswith("Python: 3.11.") and "-> 3.13." in text for text in said[RELIED])
    assert "/etc/ld.so.preload: nothing -> /usr/lib/libmimalloc.so.3" in said[RELIED]
    assert "LD_PRELOAD: /usr/lib/libmimalloc.so.2 -> nothing" in said[RELIED]
    assert "library: onnxruntime 1.23.2 -> 1.30.0" in said[RELIED]
    written = json.loads((work.folder / "patches" / "upstream.json").read_text())
    assert written["preloaded"] == "/usr/lib/libmimalloc.so.3"


def test_a_variant_that_was_not_published_keeps_its_version_and_stops_no_bump(
    to_v3_3: tuple[Tree, dict[str, list[str]]],
) -> None:
    work, said = to_v3_3
    assert said["not published this time:"] == [
        "armnn: upstream has not published v3.3.0-armnn; it stays at v2.5.6",
        "rocm: upstream has not published v3.3.0-rocm; it stays at v2.5.6",
    ]
    upstream = work.upstream
    assert {variant.name: variant.version for variant in upstream.variants if variant.version} == {
        "armnn": "v2.5.6",
        "rocm": "v2.5.6",
    }
    assert {base.variant for base in upstream.bases} == {"cpu", "cuda", "openvino", "rknn"}
    ended = work.run("build", "--variant", "rocm")
    assert (ended.returncode, ended.stderr) == (
        1,
        "build: rocm is still at v2.5.6: upstream did not publish it with v3.3.0\n",
    )
    bump(work, "v2.5.8")  # upstream published it again
    assert not any(variant.version for variant in work.upstream.variants)


def test_a_release_without_the_cpu_image_is_refused(work: Tree, host: str) -> None:
    push(f"{host}/{REPOSITORY}:v2.5.9-cuda", "linux/amd64")
    ended = work.run("bump", "v2.5.9")
    assert (ended.returncode, ended.stderr) == (1, "bump: upstream has not published v2.5.9\n")
    push(f"{host}/{REPOSITORY}:v2.5.9", "linux/amd64")
    ended = work.run("bump", "v2.5.9")
    assert (ended.returncode, ended.stderr) == (1, "bump: upstream has not published v2.5.9 for linux/arm64\n")
    assert work.upstream.version == "v2.5.6"


@pytest.mark.parametrize("force", [False, True])
def test_if_something_we_rely_on_is_gone_only_force_writes_files(work: Tree, force: bool) -> None:
    said = bump(work, "v2.6.0", *(["--force"] if force else []), code=3)
    assert "library gone: pillow 10.4.0" in said[GONE]
    assert "gone: immich_ml/sessions/ann/__init__.py" in said[GONE]
    assert (work.upstream.version == "v2.6.0") == force
    assert ("VERSION is v2.6.0-r1" in str(said)) == force


def test_a_mirror_can_replace_upstreams_registry(work: Tree, host: str) -> None:
    record = work.folder / "patches" / "upstream.toml"
    record.write_text(record.read_text().replace(host, "ghcr.io"))
    bump(work, "v2.5.8", "--registry", host)
    assert work.upstream.repository == f"ghcr.io/{REPOSITORY}"


def test_a_registry_that_cannot_be_reached_is_named(work: Tree) -> None:
    ended = work.run("bump", "v2.5.7", "--registry", "127.0.0.1:9")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"bump: can't inspect 127.0.0.1:9/{REPOSITORY}:v2.5.7: ")
    assert ended.stderr.count("\n") == 1
