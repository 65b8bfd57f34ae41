# SPDX-License-Identifier: AGPL-3.0-only
"""The scripts of maintainers and CI, and the files that they keep together."""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import hcl2
import pytest

from scripts.layers import image_files, read_layers
from scripts.names import Files, compare, names_used
from scripts.registry import Manifest, NotFound, Repository, parse_challenge
from scripts.upstream import RECORD, ROOT, Base, Refused, Upstream, our_version

UPSTREAM = Upstream.load()
IMAGE = "docker.io/devfox101/mt-photos-ml"


def literal(value: Any) -> Any:
    """A parsed value without the quotes that some versions of the parser leave on strings and keys."""
    if isinstance(value, dict):
        return {literal(name): literal(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return (
        value.strip('"').removeprefix("${").removesuffix("}") if re.fullmatch(r"\$\{\w+\}", value) else value.strip('"')
    )


def blocks(kind: str) -> dict[str, dict[str, Any]]:
    """The blocks of docker-bake.hcl of this kind, by name."""
    parsed = literal(hcl2.loads((ROOT / "docker-bake.hcl").read_text()))
    return {name: body for block in parsed[kind] for name, body in block.items() if isinstance(body, dict)}


def test_the_record_of_upstream_is_as_bump_writes_it() -> None:
    assert UPSTREAM.text() == RECORD.read_text()


def test_our_version_is_upstreams_with_a_revision() -> None:
    assert our_version()[1] == UPSTREAM.version


@pytest.mark.parametrize("base", UPSTREAM.bases, ids=lambda base: base.target)
def test_every_image_has_its_target(base: Base) -> None:
    target = blocks("target")[base.target]
    assert target["platforms"] == [base.platform]
    assert target["args"] == {"BASE": base.variable}
    assert target["inherits"] == ["image"]
    assert base.variable in blocks("variable")


def test_there_are_no_other_targets() -> None:
    targets, groups = blocks("target"), blocks("group")
    assert targets.keys() - {"image"} == {base.target for base in UPSTREAM.bases}
    default = [t for name in groups["default"]["targets"] for t in groups.get(name, {"targets": [name]})["targets"]]
    assert default == [base.target for base in UPSTREAM.bases]


def test_the_tags_are_those_of_the_first_version_and_fixed_ones() -> None:
    values = {"${IMAGE}": "mt", "${UPSTREAM}": "v2.5.6", "${VERSION}": "v2.5.6-r1"}
    tags = set()
    for base in UPSTREAM.bases:
        named = [re.sub(r"\$\{\w+\}", lambda m: values[m[0]], tag) for tag in blocks("target")[base.target]["tags"]]
        assert named == [f"mt:v2.5.6-r1{base.suffix}", f"mt:v2.5.6{base.suffix}"]
        tags |= set(named)
    variants = ("", "-arm", "-cuda", "-openvino", "-armnn", "-rknn", "-rocm")
    assert tags == {f"mt:{version}{end}" for version in ("v2.5.6", "v2.5.6-r1") for end in variants}


def test_every_argument_is_one_of_the_dockerfile() -> None:
    arguments = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    for target in blocks("target").values():
        assert target["args"].keys() <= arguments


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


def test_buildx_bakes_the_target_from_the_recorded_base(tmp_path: Path) -> None:
    there = fake_docker(tmp_path, f'test "$2" = version || env >{tmp_path}/variables')
    ended = build(there, "--variant", "cpu", "--platform", "linux/arm64")
    version, upstream = our_version()
    assert ended.stdout == f"{IMAGE}:{version}-arm\n", ended.stderr
    assert (tmp_path / "called").read_text().splitlines()[1].split()[-1] == "cpu-arm64"
    variables = (tmp_path / "variables").read_text().splitlines()
    digest = UPSTREAM.variants[0].digests["linux/arm64"]
    assert f"BASE_CPU_ARM64={UPSTREAM.repository}:{UPSTREAM.version}@{digest}" in variables
    assert {f"VERSION={version}", f"UPSTREAM={upstream}"} <= set(variables)


def test_an_image_that_is_pushed_by_digest_is_named_by_it(tmp_path: Path) -> None:
    told = '{"cuda": {"containerimage.digest": "sha256:12"}}'
    find = "for word; do case $word in --metadata-file=*) file=${word#*=};; esac; done"
    there = fake_docker(tmp_path, f"{find}\ntest \"$2\" = version || echo '{told}' >$file")
    ended = build(there, "--variant", "cuda", "--push-by-digest")
    assert ended.stdout == f"{IMAGE}@sha256:12\n", ended.stderr
    called = (tmp_path / "called").read_text()
    assert f"--set=cuda.output=type=image,name={IMAGE},push-by-digest=true,name-canonical=true,push=true" in called


def test_without_buildx_the_classic_builder_builds(tmp_path: Path) -> None:
    there = fake_docker(tmp_path, 'test "$1" = build')
    ended = build(there, "--base", "another:1", "--tag", "mine:1")
    assert ended.stdout == "mine:1\n", ended.stderr
    called = (tmp_path / "called").read_text().splitlines()[1]
    assert called.startswith("build --platform=linux/amd64 --build-arg=BASE=another:1 ")
    assert called.endswith("--tag=mine:1 .")
    assert "needs buildx" in build(there, "--push-by-digest").stderr


# names of upstream's

MAIN = """
    from .config import settings
    from .models.base import Model as InferenceModel

    def load(model: InferenceModel, *, again: bool = False) -> InferenceModel:
        while not model.loaded:
            model.load()
        return model

    async def update_state() -> None:
        yield
"""
CONFIG = """
    class Settings:
        cache_folder: str = "/cache"
        ttl: int = 300
        def _hidden(self): ...

    settings = Settings()
"""
BASE = """
    class Model:
        def load(self) -> None: ...
"""
NAMES = {"immich_ml.main": ("load", "update_state", "InferenceModel"), "immich_ml.config": ("settings",)}


def package(**changed: str) -> Files:
    sources = {"main": MAIN, "config": CONFIG, "models/base": BASE} | {
        n.replace("__", "/"): s for n, s in changed.items()
    }
    return {f"immich_ml/{name}.py": textwrap.dedent(source).encode() for name, source in sources.items()}


def told(new: Files) -> list[str]:
    return [f"{'gone' if change.gone else 'look'}: {change.text}" for change in compare(package(), new, NAMES)]


def test_the_list_of_names_is_that_of_the_runtime() -> None:
    names = names_used((ROOT / "overlay/mt_photos_ml/runtime/immich.py").read_text())
    assert "load" in names["immich_ml.main"]
    assert "immich_ml.upstream_main" not in names


def test_what_a_function_does_inside_is_its_own_affair() -> None:
    assert told(package(main=MAIN.replace("while not", "if not"))) == []
    assert told(package(config=CONFIG.replace("_hidden", "_other"))) == []


def test_a_renamed_function_is_named_with_its_new_name() -> None:
    assert told(package(main=MAIN.replace("def load", "def load_model"))) == [
        "gone: immich_ml.main.load is gone; load_model, which is new there, looks like it"
    ]


def test_a_removed_function_is_named() -> None:
    new = MAIN[: MAIN.index("    async def")] + "\n    async def preload() -> None:\n        print(1, 2, 3, 4)\n"
    assert told(package(main=new)) == ["gone: immich_ml.main.update_state is gone"]


def test_a_removed_module_is_named() -> None:
    new = {path: source for path, source in package().items() if path != "immich_ml/config.py"}
    assert told(new) == ["gone: immich_ml.config.settings is gone: immich_ml/config.py is no longer there"]


def test_a_changed_signature_is_shown() -> None:
    (change,) = told(package(main=MAIN.replace("again: bool", "times: int")))
    assert change.startswith("look: immich_ml.main.load is declared otherwise:")
    assert "  + def load(model: InferenceModel, *, times: int=False) -> InferenceModel" in change


def test_the_class_of_an_object_belongs_to_its_declaration() -> None:
    (change,) = told(package(config=CONFIG.replace("cache_folder", "cache_dir")))
    assert change.startswith("look: immich_ml.config.settings")
    assert "  + cache_dir: str = '/cache'" in change


def test_a_name_is_followed_to_where_it_is_declared() -> None:
    (change,) = told(package(models__base=BASE.replace("self", "self, path: str")))
    assert change.startswith("look: immich_ml.main.InferenceModel")


# files out of an image's layers


def layer(files: Mapping[str, str | None]) -> bytes:
    """A tar file; a folder where there is no content."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len((content or "").encode())
            archive.addfile(member, io.BytesIO((content or "").encode()))
    return data.getvalue()


def read(*layers: Mapping[str, str | None]) -> dict[str, bytes]:
    """layers: the lowest first, as an image lists them."""
    streams: list[AbstractContextManager[IO[bytes]]] = [nullcontext(io.BytesIO(layer(one))) for one in layers[::-1]]
    return read_layers(streams, "usr/src", lambda _: False)


def test_the_topmost_file_counts() -> None:
    below: dict[str, str | None] = {"usr/src/": None, "usr/src/a.py": "1", "./usr/src/b/c.py": "2", "etc/passwd": "x"}
    assert read(below, {"usr/src/a.py": "3"}) == {"a.py": b"3", "b/c.py": b"2"}


def test_a_whiteout_hides_what_is_below_and_not_what_is_beside() -> None:
    below: dict[str, str | None] = {"usr/src/a/x.py": "1", "usr/src/ab.py": "2"}
    assert read(below, {"usr/src/.wh.a": "", "usr/src/a/y.py": "3"}) == {"ab.py": b"2", "a/y.py": b"3"}
    assert read(below, {"usr/.wh.src": "", "usr/src/n.py": "4"}) == {"n.py": b"4"}
    assert read(below, {"usr/src/a/.wh..wh..opq": ""}) == {"ab.py": b"2"}
    assert read(below, {"usr/src/.wh.ab.py": ""}, {"usr/src/ab.py": "5"}) == {"a/x.py": b"1", "ab.py": b"5"}


def test_a_file_in_the_place_of_a_folder_hides_it() -> None:
    assert read({"usr/src/a/x.py": "1"}, {"usr/src/a": "2"}) == {"a": b"2"}


def test_paths_that_climb_out_are_taken_from_the_root() -> None:
    assert read({"../../usr/src/a.py": "1", "usr/src/../../b.py": "2"}) == {"a.py": b"1"}


def test_a_file_too_large_for_a_source_is_refused() -> None:
    with pytest.raises(Refused, match="more than a package of Python should"):
        read({"usr/src/a.py": " " * (2 << 20)})


# a registry


class Registry(BaseHTTPRequestHandler):
    """One image; only for those who have a token, and its layer is elsewhere."""

    blobs: dict[str, bytes]
    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        who = self.headers.get("Authorization")
        self.seen.append((self.path, who))
        digest = self.path.rpartition("/")[2]
        if self.path.startswith("/token?"):
            self.answer(200, b'{"token": "abc"}')
        elif self.path.startswith("/elsewhere/"):
            self.answer(200, self.blobs[digest])
        elif who != "Bearer abc":
            challenge = f'Bearer realm="http://{self.headers["Host"]}/token",service="a, b",scope="repository:o/i:pull"'
            self.answer(401, b"", {"WWW-Authenticate": challenge})
        elif digest not in self.blobs:
            self.answer(404, b"")
        elif "/blobs/" in self.path:
            self.answer(307, b"", {"Location": f"/elsewhere/{digest}"})
        else:
            self.answer(200, self.blobs[digest], {"Content-Type": json.loads(self.blobs[digest])["mediaType"]})

    def answer(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Repository]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    packed = gzip.compress(layer({"usr/src/immich_ml/main.py": "app = 1"}))
    config = b'{"os": "linux", "architecture": "arm64"}'
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"digest": digest_of(config)},
        "layers": [{"digest": digest_of(packed), "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}],
    }
    Registry.blobs = {digest_of(content): content for content in (packed, config)}
    Registry.blobs["v1"] = json.dumps(manifest).encode()
    Registry.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Repository(f"127.0.0.1:{server.server_port}", "o/i", insecure=True)
    server.shutdown()
    server.server_close()


def test_a_challenge_is_understood() -> None:
    header = 'Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:a/b:pull,push"'
    expected = {"realm": "https://ghcr.io/token", "service": "ghcr.io", "scope": "repository:a/b:pull,push"}
    assert parse_challenge(header) == ("bearer", expected)
    assert parse_challenge("") == ("", {})


def test_an_anonymous_token_opens_the_image(registry: Repository) -> None:
    manifest = registry.manifest("v1")
    assert registry.platforms(manifest)["linux/arm64"]["digest"] == manifest.digest
    assert image_files(registry, "v1", "linux/arm64", "usr/src", bool) == {"immich_ml/main.py": b"app = 1"}
    assert ("/token?scope=repository%3Ao%2Fi%3Apull&service=a%2C+b", None) in Registry.seen


def test_whoever_is_logged_in_asks_for_the_token(registry: Repository, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": "bWU6cHc="}}}))
    registry.manifest("v1")
    assert [who for path, who in Registry.seen if path.startswith("/token?")] == ["Basic bWU6cHc="]


def test_the_token_is_not_told_elsewhere(registry: Repository) -> None:
    image_files(registry, "v1", "linux/arm64", "usr/src", bool)
    assert {who for path, who in Registry.seen if path.startswith("/elsewhere/")} == {None}


def test_content_that_is_not_what_its_digest_says_is_refused(registry: Repository) -> None:
    layer_digest = registry.manifest("v1").content["layers"][0]["digest"]
    Registry.blobs[layer_digest] = gzip.compress(layer({"usr/src/immich_ml/main.py": "app = 2"}))
    with pytest.raises(Refused, match="with other content"):
        image_files(registry, "v1", "linux/arm64", "usr/src", bool)
    Registry.blobs[layer_digest] = Registry.blobs[layer_digest][:40]
    with pytest.raises(Refused, match="broke off"):
        image_files(registry, "v1", "linux/arm64", "usr/src", bool)
    Registry.blobs["sha256:12"] = Registry.blobs["v1"]
    with pytest.raises(Refused, match="with another manifest"):
        registry.manifest("sha256:12")


def test_what_is_not_there_is_said_to_be_missing(registry: Repository) -> None:
    with pytest.raises(NotFound, match="there is no http://127"):
        registry.manifest("v2")
    with pytest.raises(Refused, match="can't be reached"):
        Repository("127.0.0.1:9", "o/i", insecure=True).manifest("v1")


def test_attestations_are_no_platform() -> None:
    entries = [
        {"digest": "sha256:1", "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        {"digest": "sha256:2", "platform": {"os": "unknown", "architecture": "unknown"}},
    ]
    index = Manifest("application/vnd.oci.image.index.v1+json", json.dumps({"manifests": entries}).encode())
    assert Repository("h", "n").platforms(index) == {"linux/arm64": entries[0]}


def test_a_repository_without_a_host_is_the_hubs() -> None:
    assert Repository.of("devfox101/mt-photos-ml") == Repository("docker.io", "devfox101/mt-photos-ml")
    assert Repository.of("ghcr.io/a/b", "127.0.0.1:5000", insecure=True) == Repository("127.0.0.1:5000", "a/b", True)
