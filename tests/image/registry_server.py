# SPDX-License-Identifier: AGPL-3.0-only
"""A real registry on loopback, what upstream publishes into it, and copies of the tree to run the scripts in."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from image.container import ROOT, docker
from scripts.upstream import Upstream
from service import free_port

REPOSITORY = "immich-app/immich-machine-learning"
"""Upstream's, below the host."""
_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {folder}/registry}}
  delete: {{enabled: true}}
http: {{addr: "{host}"}}
"""
_SMALL = """\
FROM scratch
COPY main.py /usr/src/immich_ml/main.py
WORKDIR /usr/src
ENV PYTHONPATH=/usr/src MACHINE_LEARNING_CACHE_FOLDER=/cache DEVICE={device}
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "immich_ml"]
"""


@dataclass(frozen=True)
class Tree:
    """A copy of the working tree, committed. image: what the scripts call our image, in the registry of the test."""

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


def need_the_tools() -> None:
    """Skips where there are none: a registry, and a Docker whose store keeps attestations and several platforms."""
    for command in ("docker", "docker-registry"):
        if shutil.which(command) is None:
            pytest.skip(f"no {command} on this machine")
    if "containerd" not in docker("info", "--format={{.DriverStatus}}", check=False):
        pytest.skip("this Docker does not keep its images in containerd's store; .ci/docker starts one that does")
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
        _wait(host, process, folder / "registry.log")
        yield host
    finally:
        process.terminate()
        process.wait()
        listed = docker("images", "--format={{.Repository}}:{{.Tag}}@{{.Digest}}", "--digests").splitlines()
        ours = {name.replace(":<none>", "").partition("@<none>")[0] for name in listed if name.startswith(f"{host}/")}
        docker("rmi", "--force", *ours, check=False)


def _wait(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://{host}/v2/").status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the registry did not start:\n{log.read_text()}")


def push(image: str, reference: str) -> None:
    """An image of this machine, under that name."""
    docker("tag", image, reference)
    docker("push", "--quiet", reference)
    docker("rmi", reference)


def push_small(reference: str, platform: str, device: str = "cpu", main: str = "app = None") -> None:
    """An image for this platform with upstream's main.py and nothing else: enough to be laid over and looked at."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "main.py").write_text(main)
        Path(folder, "Dockerfile").write_text(_SMALL.format(device=device))
        options = ["--push", "--provenance=false", f"--platform={platform}", f"--tag={reference}"]
        docker("buildx", "build", *options, folder)


def release(host: str, version: str, cpu: str | None = None, leave_out: tuple[str, ...] = ()) -> None:
    """What upstream publishes of a version. cpu: an image of this machine for the processor; else a small one, as the
    others are. leave_out: variants that it does not publish this time."""
    name = f"{host}/{REPOSITORY}:{version}"
    for variant in Upstream.load().variants:
        if variant.name in leave_out:
            continue
        if len(variant.platforms) == 1:
            push_small(name + variant.suffix, variant.platforms[0], variant.name)
            continue
        sources = []
        for platform in variant.platforms:
            sources.append(f"{name}-part-{platform.partition('/')[2]}")
            if cpu and platform == "linux/amd64":
                push(cpu, sources[-1])
            else:
                push_small(sources[-1], platform)
        docker("buildx", "imagetools", "create", f"--tag={name}{variant.suffix}", *sources)


def tree(folder: Path, host: str, digests: Mapping[str, Mapping[str, str]] | None = None) -> Tree:
    """A committed copy of the working tree in the folder, whose upstream is in the registry there. digests: by variant
    and platform; none where they are not known."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (source := ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    (folder / "patches" / "upstream.json").unlink(missing_ok=True)
    record, known = folder / "patches" / "upstream.toml", digests or {}
    upstream = Upstream.load()
    variants = tuple(
        type(variant)(variant.name, variant.suffix, variant.platforms, known.get(variant.name, {}))
        for variant in upstream.variants
    )
    record.write_text(Upstream(f"{host}/{REPOSITORY}", upstream.version, variants).text())
    made = Tree(folder, f"{host}/ours/mt-photos-ml")
    made.git("init", "--quiet")
    made.git("add", "--all")
    made.git("commit", "--quiet", "--message=The tree")
    return made
