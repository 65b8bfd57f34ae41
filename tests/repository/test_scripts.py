# SPDX-License-Identifier: AGPL-3.0-only
"""The scripts of maintainers and CI, and the files that they keep together."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scripts.bump import resolve
from scripts.compare import Release, compare, imported
from scripts.docker import Contents
from scripts.upstream import RECORD, ROOT, Refused, Upstream, Variant, our_version

UPSTREAM = Upstream.load()
IMAGE = "docker.io/devfox101/mt-photos-ml"


def test_the_record_of_upstream_is_as_bump_writes_it() -> None:
    assert UPSTREAM.text() == RECORD.read_text()
    assert our_version()[1] == UPSTREAM.version


def test_there_is_a_target_for_every_image_with_its_base_and_tags() -> None:
    if subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker buildx on this machine")
    command = ["docker", "buildx", "bake", "--file=docker-bake.hcl", "--print"]
    given = {**os.environ, "IMAGE": "mt", "VERSION": "fixed"}
    ended = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=True)
    targets = json.loads(ended.stdout)["target"]
    assert targets.keys() == {base.target for base in UPSTREAM.bases}
    for base in UPSTREAM.bases:
        target = targets[base.target]
        assert target["platforms"] == [base.platform]
        assert target["args"]["BASE"] == base.reference.partition("@")[0]
        assert target["tags"] == [f"mt:fixed{base.suffix}", f"mt:{UPSTREAM.version}{base.suffix}"]
    ends = [base.suffix for base in UPSTREAM.bases]
    assert ends == ["", "-arm", "-cuda", "-openvino", "-armnn", "-rknn", "-rocm"]


def test_a_digest_stands_in_one_place() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    texts = [path.read_bytes() for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]
    digests = [digest for variant in UPSTREAM.variants for digest in variant.digests.values()]
    assert digests
    for digest in digests:
        assert sum(text.count(digest.encode()) for text in texts) == 1
    assert "sha256" not in (ROOT / "docker-bake.hcl").read_text()


def test_a_variant_that_is_not_there_is_named() -> None:
    with pytest.raises(Refused, match="no variant cuda for linux/arm64; there are cpu linux/amd64, "):
        UPSTREAM.base("cuda", "linux/arm64")


# what is built


def fake_docker(folder: Path, script: str) -> dict[str, str]:
    """An environment in which `docker` is this script."""
    command = folder / "docker"
    command.write_text(f'#!/bin/sh\necho "$@" >>{folder}/called\n{script}\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "IMAGE": IMAGE}


def build(environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.build", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


FIND = "for word; do case $word in --metadata-file=*) file=${word#*=};; esac; done"


def test_an_image_that_is_pushed_by_digest_is_named_by_it(tmp_path: Path) -> None:
    told = '{"cuda": {"containerimage.digest": "sha256:12"}}'
    there = fake_docker(tmp_path, f"test $2 = version && exit\n{FIND}\necho '{told}' >$file")
    ended = build(there, "--variant", "cuda", "--push-by-digest", "--sbom")
    assert ended.stdout == f"{IMAGE}@sha256:12\n", ended.stderr
    called = (tmp_path / "called").read_text()
    assert f"--set=cuda.output=type=image,name={IMAGE},push-by-digest=true,name-canonical=true,push=true" in called
    assert "--provenance=mode=max --sbom=true" in called
    assert "--load" not in called


@pytest.mark.parametrize(
    ("path", "line"),
    [("", "there is no docker command here"), ("docker", "docker buildx version failed: no such command")],
)
def test_without_docker_or_its_buildx_there_is_one_line(path: str, line: str, tmp_path: Path) -> None:
    there = fake_docker(tmp_path, "echo no such command >&2; exit 1")
    there["PATH"] = str(tmp_path) if path else "/nowhere"
    ended = build(there)
    assert (ended.returncode, ended.stderr) == (1, f"build: {line}\n")


# what has changed in upstream


LIBRARIES = {name: bound or "1.0" for name, bound in imported().items()} | {"scipy": "1.16.1"}
FILES = {
    "immich_ml/main.py": "app = FastAPI(lifespan=lifespan)\n",
    "immich_ml/sessions/ann/__init__.py": "class AnnSession:\n    pass\n",
    "immich_ml/sessions/rknn/__init__.py": "class RknnSession:\n    pass\n",
    "immich_ml/config.py": "port = 3003\n",
}
CONFIGURATION = {
    "User": "",
    "WorkingDir": "/usr/src",
    "Entrypoint": ["tini", "--"],
    "Cmd": ["python", "-m", "immich_ml"],
    "Env": ["PATH=/opt/venv/bin:/bin", "PYTHONPATH=/usr/src", "MACHINE_LEARNING_CACHE_FOLDER=/cache", "IMMICH_BUILD=1"],
}


def released(
    files: Mapping[str, str] = FILES,
    libraries: Mapping[str, str] = LIBRARIES,
    python: str = "3.11.14",
    **configuration: Any,
) -> Release:
    contents = Contents({path: text.encode() for path, text in files.items()}, dict(libraries), python)
    return Release(contents, {**CONFIGURATION, **configuration}, {"cuda": {**CONFIGURATION, **configuration}})


def told(new: Release) -> list[str]:
    """Each change, with what it means for us."""
    marks = {(True, True): "GONE", (False, True): "relied", (False, False): "besides"}
    return [f"{marks[change.gone, change.relied]} {change.text}" for change in compare(released(), new)]


def without(values: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in values.items() if key != name}


def test_the_same_release_has_no_changes() -> None:
    assert told(released()) == []
    noise = [*CONFIGURATION["Env"][:-1], "IMMICH_BUILD=2", "IMMICH_SOURCE_COMMIT=abc"]
    assert told(released(Env=noise)) == []


@pytest.mark.parametrize("path", list(FILES)[:3])
def test_a_file_that_we_use_and_that_is_gone_is_said_first(path: str) -> None:
    files = {**without(FILES, path), "immich_ml/new.py": ""}
    assert told(released(files)) == [f"GONE gone: {path}", "besides new: immich_ml/new.py"]


@pytest.mark.parametrize(
    "source",
    [
        "application = FastAPI()",
        "# app = 1",
        "def application(): ...",
        "def other[T](x: T) -> T: ...",
        "\x00 not Python at all {",
    ],
)
def test_a_name_that_we_use_and_that_is_gone_is_said(source: str) -> None:
    assert told(released({**FILES, "immich_ml/main.py": source}))[0] == "GONE gone: app of immich_ml/main.py"


@pytest.mark.parametrize(
    "source",
    [
        "app = FastAPI()",
        "app: FastAPI = make()",
        "from .application import app",
        "from .application import (\n    lock, app)".replace("\n    ", " "),
        "def f[**P, T](x: T) -> T: ...\ntype A = int\napp = FastAPI()",
        "async def app(scope, receive, send): ...",
    ],
)
def test_a_name_is_found_in_whatever_way_it_is_given(source: str) -> None:
    (change,) = told(released({**FILES, "immich_ml/main.py": source}))
    assert change.startswith("relied changed: immich_ml/main.py\n")


def test_another_file_is_shown_with_its_difference() -> None:
    (change,) = told(released({**FILES, "immich_ml/config.py": "port = 3004\n"}))
    assert change == "besides changed: immich_ml/config.py\n  @@ -1 +1 @@\n  -port = 3003\n  +port = 3004"
    (change,) = told(released({**FILES, "immich_ml/config.py": "x\n" * 5000}))
    assert change.endswith("more lines")
    assert len(change.splitlines()) < 210


@pytest.mark.parametrize(
    ("configuration", "line"),
    [
        ({"WorkingDir": "/app"}, "GONE WorkingDir: /usr/src -> /app"),
        ({"Entrypoint": None}, "GONE Entrypoint: ['tini', '--'] -> nothing"),
        ({"User": "1000"}, "GONE User: nothing -> 1000"),
        (
            {"Env": ["PATH=/opt/venv/bin:/bin", "MACHINE_LEARNING_CACHE_FOLDER=/cache"]},
            "GONE PYTHONPATH: /usr/src -> nothing",
        ),
        ({"Cmd": ["serve"]}, "relied Cmd: ['python', '-m', 'immich_ml'] -> ['serve']"),
        ({"Healthcheck": {"Test": ["NONE"]}}, "relied Healthcheck: nothing -> {'Test': ['NONE']}"),
        ({"Env": [*CONFIGURATION["Env"], "LD_PRELOAD=x.so"]}, "relied LD_PRELOAD: nothing -> x.so"),
        ({"Env": [*CONFIGURATION["Env"], "LANG=C"]}, "besides LANG: nothing -> C"),
    ],
)
def test_the_configuration_is_compared_variant_by_variant(configuration: dict[str, Any], line: str) -> None:
    mark, _, text = line.partition(" ")
    assert told(released(**configuration)) == [line, f"{mark} cuda: {text}"]


@pytest.mark.parametrize(
    ("libraries", "line"),
    [
        (without(LIBRARIES, "starlette"), f"GONE library gone: starlette {LIBRARIES['starlette']}"),
        (without(LIBRARIES, "scipy"), "besides library gone: scipy 1.16.1"),
        ({**LIBRARIES, "pillow": "13.0.0"}, f"relied library: pillow {LIBRARIES['pillow']} -> 13.0.0"),
        ({**LIBRARIES, "scipy": "2.0"}, "besides library: scipy 1.16.1 -> 2.0"),
        ({**LIBRARIES, "torch": "3.0"}, "besides library new: torch 3.0"),
        (
            {**LIBRARIES, "pillow": "9.5.0"},
            f"GONE library: pillow {LIBRARIES['pillow']} -> 9.5.0, "
            f"older than the {imported()['pillow']} of pyproject.toml",
        ),
    ],
)
def test_libraries_that_we_import_are_told_from_the_others(libraries: dict[str, str], line: str) -> None:
    assert told(released(libraries=libraries)) == [line]


def test_another_build_of_onnxruntime_is_the_same_library() -> None:
    other = {**without(LIBRARIES, "onnxruntime"), "onnxruntime-gpu": LIBRARIES["onnxruntime"]}
    assert told(released(libraries=other)) == []


@pytest.mark.parametrize(("python", "mark"), [("3.11.15", "besides"), ("3.13.1", "relied"), ("3.10.1", "GONE")])
def test_another_python_is_said(python: str, mark: str) -> None:
    assert told(released(python=python)) == [f"{mark} Python: 3.11.14 -> {python}"]


def test_the_oldest_libraries_that_we_take_are_in_the_lock_of_the_oldest_base() -> None:
    locked = dict(re.findall(r"^([\w-]+)==(.*)$", (ROOT / "tests/image/base/v2.5.6.txt").read_text(), re.MULTILINE))
    for name, bound in imported().items():
        if name in locked:
            assert tuple(map(int, re.findall(r"\d+", locked[name]))) >= tuple(map(int, re.findall(r"\d+", bound))), name
    assert "pillow" in imported()


def test_without_the_processors_image_a_release_is_refused() -> None:
    nothing: dict[str, dict[str, Any]] = {variant.name: {} for variant in UPSTREAM.variants}
    with pytest.raises(Refused, match=r"^upstream has not published v9\.0\.0$"):
        resolve(UPSTREAM, "v9.0.0", nothing)


def test_a_variant_at_a_version_of_its_own_is_recorded_so() -> None:
    lagging = Variant("rocm", "-rocm", ("linux/amd64",), {}, "v2.5.4")
    upstream = Upstream("r", "v2.5.6", (UPSTREAM.variants[0], lagging))
    assert 'suffix = "-rocm"\nplatforms = ["linux/amd64"]\nversion = "v2.5.4"\n' in upstream.text()
    with pytest.raises(Refused, match=r"rocm is still at v2\.5\.4"):
        upstream.base("rocm")
    assert json.loads(json.dumps([base.variant for base in upstream.bases])) == ["cpu", "cpu"]
