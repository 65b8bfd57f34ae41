# SPDX-License-Identifier: AGPL-3.0-only
"""A real registry on loopback that holds the stand-in as upstream publishes its images, and copies of the tree to run
the scripts in."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from image.container import ROOT, docker
from scripts.bump import resolve
from scripts.registry import INDEX, Manifest, Repository
from scripts.upstream import Upstream
from service import free_port

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
    """A copy of the working tree, committed. image: what the scripts call the image here, apart from any other."""

    folder: Path
    image: str

    def run(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs one of scripts/ as people do."""
        command = [sys.executable, "-m", f"scripts.{script}", *words]
        environment = {**os.environ, "IMAGE": self.image}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def git(self, *words: str) -> None:
        who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *who, *words], cwd=self.folder, capture_output=True, check=True)

    @property
    def upstream(self) -> Upstream:
        return Upstream.load(self.folder / "patches" / "upstream.toml")


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A registry that keeps its data in the folder: HOST:PORT."""
    host = f"127.0.0.1:{free_port()}"
    (folder / "registry.yml").write_text(_CONFIG.format(folder=folder, host=host))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "registry.yml"], stdout=log, stderr=log)
    try:
        _wait(host, process, folder / "registry.log")
        yield host
    finally:
        process.terminate()
        process.wait()


def _wait(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://{host}/v2/").status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the registry did not start:\n{log.read_text()}")


def upstream_at(host: str) -> Repository:
    """Upstream's repository in the registry there."""
    return Repository.of(Upstream.load().repository, host, insecure=True)


def release(host: str, image: str, version: str) -> None:
    """Pushes the image as every variant of this version of upstream, for every platform that it is for."""
    upstream, repository = Upstream.load(), upstream_at(host)
    docker("tag", image, f"{repository}:{version}")
    docker("push", f"{repository}:{version}")
    docker("rmi", f"{repository}:{version}")
    pushed = repository.manifest(version)
    images = {platform: _said_to_be_for(repository, pushed, platform) for platform in ("linux/amd64", "linux/arm64")}
    for variant in upstream.variants:
        named = images[variant.platforms[0]]
        if len(variant.platforms) > 1:
            entries = [images[platform].descriptor(platform) for platform in variant.platforms]
            named = Manifest(INDEX, json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode())
        repository.put_manifest(f"{version}{variant.suffix}", named)


def _said_to_be_for(repository: Repository, manifest: Manifest, platform: str) -> Manifest:
    """The same image under another platform's name: its layers are never run here."""
    with repository.blob(manifest.content["config"]["digest"]) as stream:
        config = json.loads(stream.read())
    if config["architecture"] == platform.removeprefix("linux/"):
        return manifest
    data = json.dumps(config | {"architecture": platform.removeprefix("linux/")}).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    at = httpx.post(f"http://{repository.host}/v2/{repository.name}/blobs/uploads/").headers["Location"]
    httpx.put(at, params={**httpx.URL(at).params, "digest": digest}, content=data).raise_for_status()
    about = {**manifest.content["config"], "digest": digest, "size": len(data)}
    changed = Manifest(manifest.media_type, json.dumps({**manifest.content, "config": about}).encode())
    repository.put_manifest(changed.digest, changed)
    return changed


def tree(folder: Path, host: str, image: str = "mt-photos-ml-test/none") -> Tree:
    """A committed copy of the working tree in the folder, whose upstream.toml has the digests of the registry there."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (source := ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    upstream = Upstream.load()
    (folder / "patches" / "upstream.toml").write_text(resolve(upstream, upstream.version, upstream_at(host)).text())
    made = Tree(folder, image)
    made.git("init", "--quiet")
    made.git("add", "--all")
    made.git("commit", "--quiet", "--message=The tree")
    return made
