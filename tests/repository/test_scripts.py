# SPDX-License-Identifier: AGPL-3.0-only
"""The scripts of maintainers and CI, and the files that they keep consistent."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scripts.compare import Release, compare, imported
from scripts.docker import Contents
from scripts.upstream import RECORD, ROOT, Refused, Upstream, our_version

UPSTREAM = Upstream.load()
IMAGE = "docker.io/devfox101/mt-photos-ml"


def test_the_record_of_upstream_is_as_bump_writes_it() -> None:
    assert UPSTREAM.text() == RECORD.read_text()
    assert our_version()[1] == UPSTREAM.version


@pytest.mark.skipif(
    subprocess.run(["sh", "-c", "docker buildx version"], capture_output=True, check=False).returncode != 0,
    reason="no docker buildx on this machine",
)
def test_there_is_a_target_for_every_image_with_its_base_and_tags() -> None:
    """Runs the command that a user would type, which reads compose.yaml too."""
    given = {**os.environ, "IMAGE": "mt", "VERSION": "fixed"}
    command = ["docker", "buildx", "bake", "default", "--print"]
    ended = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=True)
    left_out = {base.target for base in UPSTREAM.every} - {base.target for base in UPSTREAM.bases}
    told = {
        name: (made["platforms"], made["args"]["BASE"], made["tags"])
        for name, made in json.loads(ended.stdout)["target"].items()
        if name not in left_out
    }
    assert told == {
        base.target: (
            [base.platform],
            base.reference.partition("@")[0],
            [f"mt:fixed{base.suffix}", f"mt:{UPSTREAM.version}{base.suffix}"],
        )
        for base in UPSTREAM.bases
    }
    ends = [base.suffix for base in UPSTREAM.every]
    assert ends == ["", "-arm", "-cuda", "-openvino", "-armnn", "-rknn", "-rocm"]


def test_a_release_has_the_images_whose_bases_are_known_and_names_the_others() -> None:
    ended = build({**os.environ, "GITHUB_ACTIONS": ""}, "--matrix")
    unknown = {base.variant for base in UPSTREAM.bases if not base.digest}
    listed = [image["target"] for image in json.loads(ended.stdout)]
    assert listed == [base.target for base in UPSTREAM.bases if base.variant not in unknown]
    assert {line.split(" ", 2)[1] for line in ended.stderr.splitlines()} == unknown


def test_an_unknown_variant_is_named_in_the_error() -> None:
    with pytest.raises(Refused, match="no variant cuda for linux/arm64; there are cpu linux/amd64, "):
        UPSTREAM.base("cuda", "linux/arm64")


def fake_docker(folder: Path, script: str) -> dict[str, str]:
    """An environment in which `docker` is this script."""
    command = folder / "docker"
    command.write_text(f'#!/bin/sh\necho "$@" >>{folder}/called\n{script}\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "IMAGE": IMAGE}


def build(environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.build", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_an_image_that_is_pushed_by_digest_is_named_by_it(tmp_path: Path) -> None:
    told = '{"cuda": {"containerimage.digest": "sha256:12"}}'
    find = "for word; do case $word in --metadata-file=*) file=${word#*=};; esac; done"
    there = fake_docker(tmp_path, f"test $2 = version && exit\n{find}\necho '{told}' >$file")
    ended = build(there, "--variant", "cuda", "--push-by-digest", "--sbom")
    assert ended.stdout == f"{IMAGE}@sha256:12\n", ended.stderr
    called = (tmp_path / "called").read_text()
    assert f"--set=cuda.output=type=image,name={IMAGE},push-by-digest=true,name-canonical=true,push=true" in called
    assert "--provenance=mode=max --sbom=true" in called
    assert "--load" not in called


@pytest.mark.parametrize(
    ("path", "line"),
    [("", "the docker command was not found"), ("docker", "docker buildx version failed: no such command")],
)
def test_without_docker_or_buildx_the_error_is_one_line(path: str, line: str, tmp_path: Path) -> None:
    there = fake_docker(tmp_path, "echo no such command >&2; exit 1")
    there["PATH"] = str(tmp_path) if path else "/nowhere"
    ended = build(there)
    assert (ended.returncode, ended.stderr) == (1, f"build: {line}\n")


LIBRARIES = {name: bound or "1.0" for name, bound in imported().items()} | {"scipy": "1.16.1"}
FILES = {
    "immich_ml/main.py": "app = FastAPI(lifespan=lifespan)\n",
    "immich_ml/sessions/ann/__init__.py": "class AnnSession:\n    pass\n",
    "immich_ml/sessions/rknn/__init__.py": "class RknnSession:\n    pass\n",
    "immich_ml/config.py": "port = 3003\n",
}
ENVIRONMENT = ["PYTHONPATH=/usr/src", "MACHINE_LEARNING_CACHE_FOLDER=/cache"]
CONFIGURATION = {
    "WorkingDir": "/usr/src",
    "Entrypoint": ["tini", "--"],
    "Cmd": ["python", "-m", "immich_ml"],
    "Env": ENVIRONMENT,
}


def released(
    files: Mapping[str, str | None] | None = None,
    libraries: Mapping[str, str | None] | None = None,
    python: str = "3.11.14",
    preloaded: str = "",
    **configuration: Any,
) -> Release:
    """The release above with these changes; None removes a file or library."""
    texts = {path: text.encode() for path, text in {**FILES, **(files or {})}.items() if text is not None}
    versions = {name: version for name, version in {**LIBRARIES, **(libraries or {})}.items() if version}
    told = {**CONFIGURATION, **configuration}
    return Release(Contents(texts, versions, python, preloaded), told, {"cuda": told})


def in_main(source: str) -> dict[str, Any]:
    return {"files": {"immich_ml/main.py": source}}


PILLOW, ONNXRUNTIME, STARLETTE = (LIBRARIES[name] for name in ("pillow", "onnxruntime", "starlette"))
GONE, RELIED, BESIDES = (True, True), (False, True), (False, False)
CHANGES: list[tuple[dict[str, Any], tuple[bool, bool], str]] = [
    ({"files": {"immich_ml/sessions/ann/__init__.py": None}}, GONE, "gone: immich_ml/sessions/ann/__init__.py"),
    ({"preloaded": "/lib/a.so"}, RELIED, "/etc/ld.so.preload: nothing -> /lib/a.so"),
    ({"files": {"immich_ml/new.py": ""}}, BESIDES, "new: immich_ml/new.py"),
    *((in_main(source), GONE, "gone: app of immich_ml/main.py") for source in ("application = 1", "# app = 1", "\0 {")),
    *(
        (in_main(source), RELIED, "changed: immich_ml/main.py")
        for source in ("app: FastAPI = make()", "from .x import (lock, app)", "type A = int\nasync def app(scope): ...")
    ),
    (
        {"files": {"immich_ml/config.py": "port = 3004\n"}},
        *(BESIDES, "changed: immich_ml/config.py\n  @@ -1 +1 @@\n  -port = 3003\n  +port = 3004"),
    ),
    ({"WorkingDir": "/app"}, GONE, "WorkingDir: /usr/src -> /app"),
    ({"User": "1000"}, GONE, "cuda: User: nothing -> 1000"),
    ({"Env": ENVIRONMENT[1:]}, GONE, "PYTHONPATH: /usr/src -> nothing"),
    ({"Cmd": ["serve"]}, RELIED, "Cmd: ['python', '-m', 'immich_ml'] -> ['serve']"),
    ({"Env": [*ENVIRONMENT, "LD_PRELOAD=x.so"]}, RELIED, "cuda: LD_PRELOAD: nothing -> x.so"),
    ({"Env": [*ENVIRONMENT, "LANG=C"]}, BESIDES, "LANG: nothing -> C"),
    ({"libraries": {"starlette": None}}, GONE, f"library gone: starlette {STARLETTE}"),
    ({"libraries": {"pillow": "9.5.0"}}, GONE, f"library: pillow {PILLOW} -> 9.5.0, older than the {PILLOW} of"),
    ({"libraries": {"pillow": "13.0.0"}}, RELIED, f"library: pillow {PILLOW} -> 13.0.0"),
    ({"libraries": {"scipy": "2.0"}}, BESIDES, "library: scipy 1.16.1 -> 2.0"),
    ({"python": "3.10.1"}, GONE, "Python: 3.11.14 -> 3.10.1"),
    ({"python": "3.13.1"}, RELIED, "Python: 3.11.14 -> 3.13.1"),
    ({"python": "3.11.15"}, BESIDES, "Python: 3.11.14 -> 3.11.15"),
]


@pytest.mark.parametrize(("changes", "mark", "text"), CHANGES, ids=[text for _, _, text in CHANGES])
def test_changes_in_what_we_rely_on_are_separated_from_others(
    changes: dict[str, Any], mark: tuple[bool, bool], text: str
) -> None:
    told = compare(released(), released(**changes))
    (change,) = (change for change in told if change.text.startswith(text))
    assert (change.gone, change.relied) == mark


def test_another_build_of_the_same_has_no_changes() -> None:
    noise = [*ENVIRONMENT, "IMMICH_BUILD=2", "IMMICH_SOURCE_COMMIT=abc"]
    other = released(libraries={"onnxruntime": None, "onnxruntime-gpu": ONNXRUNTIME}, Env=noise)
    assert compare(released(), other) == []
