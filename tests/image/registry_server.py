# SPDX-License-Identifier: AGPL-3.0-only
"""Runs a real registry on loopback, publishes stand-ins of upstream's images to it, and copies the tree for scripts."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from image import standin
from image.container import ROOT, docker
from scripts.tags import CHANGELOG, PAGES
from scripts.upstream import Upstream, our_version
from service import answers, free_port, until

REPOSITORY = "immich-app/immich-machine-learning"
"""Upstream's repository, without the host."""
OLD = "v2.5.6"
"""The upstream release of a test's tree, whatever the working tree has."""
NO_ARCHIVE = b"This is no archive."
MANIFEST = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {folder}/registry}}
  delete: {{enabled: true}}
http: {{addr: "{host}"}}
"""


@dataclass(frozen=True)
class Tree:
    """A committed copy of the working tree. image: the name of our image, in the test's registry."""

    folder: Path
    image: str

    def run(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs one of scripts/ as a user does."""
        command = [sys.executable, "-m", f"scripts.{script}", *words]
        environment = {**os.environ, "IMAGE": self.image, "GITHUB_ACTIONS": ""}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", *who, *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout

    @property
    def upstream(self) -> Upstream:
        return Upstream.load(self.folder / "patches" / "upstream.toml")


def need_the_tools() -> None:
    """Skips if there is no registry, or no Docker whose store keeps attestations and several platforms."""
    for command in ("docker", "docker-registry"):
        if shutil.which(command) is None:
            pytest.skip(f"no {command} on this machine")
    if "containerd" not in docker("info", "--format={{.DriverStatus}}", check=False):
        pytest.skip("this Docker does not use containerd's image store; .ci/docker starts one that does")
    if not docker("buildx", "version", check=False):
        pytest.skip("this Docker has no buildx; .ci/docker starts one that has")


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A registry that keeps its data in the folder: HOST:PORT."""
    host = f"127.0.0.1:{free_port()}"
    (folder / "registry.yml").write_text(_CONFIG.format(folder=folder, host=host))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "registry.yml"], stdout=log, stderr=log)
    try:
        until(lambda: answers(f"http://{host}/v2/"))
        yield host
    finally:
        process.terminate()
        process.wait()
        listed = docker("images", "--format={{.Repository}}:{{.Tag}}@{{.Digest}}", "--digests").splitlines()
        ours = {name.replace(":<none>", "").partition("@<none>")[0] for name in listed if name.startswith(f"{host}/")}
        docker("rmi", "--force", *ours, check=False)


def push(reference: str, platforms: str, variant: str = "cpu", like: str = "v2.5.6", bare: bool = False) -> None:
    """Pushes an image of a few kilobytes, with upstream's files and empty libraries: enough to build on and to inspect.
    bare: without the libraries and the sessions."""
    with tempfile.TemporaryDirectory() as name:
        standin.lay_out_tiny(like, variant, folder := Path(name))
        if bare:
            shutil.rmtree(folder / "venv" / "lib")
            shutil.rmtree(folder / "immich_ml" / "sessions")
        options = ["--push", "--provenance=false", f"--platform={platforms}", f"--tag={reference}"]
        options.append(f"--target={standin.stage(like, variant)}")
        docker("buildx", "build", *options, f"--build-arg=DEVICE={variant}", name)


def release(host: str, version: str, like: str = "v2.5.6", leave_out: tuple[str, ...] = (), bare: bool = False) -> None:
    """Publishes a version as upstream does. leave_out: variants that it does not publish this time."""
    for variant in Upstream.load().variants:
        if variant.name not in leave_out:
            name = f"{host}/{REPOSITORY}:{version}{variant.suffix}"
            push(name, ",".join(variant.platforms), variant.name, like, bare)


def seal(host: str, tag: str) -> str:
    """Pushes a copy of this image of upstream's whose last layer is not an archive, so that unpacking it fails.
    Returns its name."""
    with httpx.Client(base_url=f"http://{host}/v2/{REPOSITORY}", headers={"accept": MANIFEST}) as client:

        def kept(data: bytes) -> dict[str, object]:
            """Uploads the bytes as a blob."""
            blob, place = f"sha256:{sha256(data).hexdigest()}", client.post("/blobs/uploads/").headers["location"]
            assert client.put(f"{place}&digest={blob}", content=data).status_code == 201
            return {"digest": blob, "size": len(data)}

        manifest = client.get(f"/manifests/{tag}").json()
        about = client.get(f"/blobs/{manifest['config']['digest']}").json()
        del about["history"]
        layer = kept(NO_ARCHIVE)
        about["rootfs"]["diff_ids"].append(layer["digest"])
        manifest["config"] |= kept(json.dumps(about).encode())
        manifest["layers"].append(manifest["layers"][0] | layer)
        kind = {"content-type": manifest["mediaType"]}
        put = client.put("/manifests/sealed", content=json.dumps(manifest), headers=kind)
    assert put.status_code == 201
    return f"{host}/{REPOSITORY}@{put.headers['docker-content-digest']}"


def tree(folder: Path, host: str, digests: Mapping[str, Mapping[str, str]] | None = None) -> Tree:
    """Makes a committed copy of the working tree at v2.5.6-r1, with this registry as upstream's. digests: the known
    ones, by variant and platform."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (source := ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    (folder / "patches" / "upstream.json").unlink(missing_ok=True)
    record, known = folder / "patches" / "upstream.toml", digests or {}
    upstream, (ours, now) = Upstream.load(), our_version()
    for name in (*PAGES, CHANGELOG, "VERSION", "docker-bake.hcl"):
        text = (folder / name).read_text().replace(ours, f"{OLD}-r1")
        (folder / name).write_text(re.sub(rf"{re.escape(now)}(?![\w.])", OLD, text))
    variants = tuple(
        type(variant)(variant.name, variant.suffix, variant.platforms, known.get(variant.name, {}))
        for variant in upstream.variants
    )
    record.write_text(Upstream(f"{host}/{REPOSITORY}", OLD, variants).text())
    made = Tree(folder, f"{host}/ours/mt-photos-ml")
    made.git("init", "--quiet")
    made.git("add", "--all")
    made.git("commit", "--quiet", "--message=The tree")
    return made
