# SPDX-License-Identifier: AGPL-3.0-only
"""Finds images in a registry and reads their contents, with the docker command."""

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from .upstream import Refused

_LARGEST_SOURCE = 1 << 20


@dataclass(frozen=True)
class Image:
    """An image in a registry, for one platform. configuration: `config` of the OCI image specification."""

    digest: str
    platform: str
    configuration: dict[str, Any]

    @property
    def labels(self) -> dict[str, str]:
        return self.configuration.get("Labels") or {}


@dataclass(frozen=True)
class Contents:
    """What is in an image. files: by path below /usr/src. libraries: versions by name. python: its version. preloaded:
    the libraries in /etc/ld.so.preload."""

    files: dict[str, bytes]
    libraries: dict[str, str]
    python: str
    preloaded: str


def docker(*words: str) -> str:
    """Runs a docker command and returns its output. Raises Refused if it fails."""
    ended = _run(*words)
    if ended.returncode:
        raise Refused(f"docker {' '.join(words[:3])} failed: {_last_line(ended.stderr)}")
    return ended.stdout.strip()


def digest(reference: str) -> str | None:
    """The digest of a tag in a registry; None if there is no such tag. Raises Refused."""
    manifest = _inspected(reference, "Manifest")
    return str(manifest["digest"]) if manifest else None


def images(reference: str) -> dict[str, Image]:
    """The images of a tag or digest in a registry, by platform; empty if there are none. Raises Refused."""
    manifest = _inspected(reference, "Manifest")
    if manifest is None:
        return {}
    about = _inspected(reference, "Image") or {}
    if "manifests" not in manifest:
        platform = f"{about['os']}/{about['architecture']}"
        return {platform: Image(manifest["digest"], platform, about.get("config", {}))}
    found: dict[str, Image] = {}
    for entry in manifest["manifests"]:
        of = entry.get("platform", {})
        platform = f"{of.get('os')}/{of.get('architecture')}"
        if platform == "unknown/unknown" or platform in found:  # attestations
            continue
        # buildx lists configurations by platform if there are several, else prints the only one
        config = about if "architecture" in about else next((a for p, a in about.items() if p.startswith(platform)), {})
        found[platform] = Image(entry["digest"], platform, config.get("config", {}))
    return found


def contents(reference: str, platform: str) -> tuple[Contents, dict[str, Any]]:
    """An image's contents, and its configuration with the health check, which `images` does not get. Pulls the image
    but runs nothing in it."""
    docker("pull", "--quiet", f"--platform={platform}", reference)
    configuration: dict[str, Any] = json.loads(docker("image", "inspect", reference))[0]["Config"]
    files: dict[str, bytes] = {}
    libraries: dict[str, str] = {}
    python = preloaded = ""
    with _exported(reference, platform) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if member.isreg() and path.is_relative_to("usr/src") and "__pycache__" not in path.parts:
                if member.size > _LARGEST_SOURCE:
                    raise Refused(f"{reference} has a source of {member.size} bytes: {path}")
                files[str(path.relative_to("usr/src"))] = _read(archive, member)
            elif str(path) == "etc/ld.so.preload":
                preloaded = " ".join(_read(archive, member).decode().split())
            elif path.name == "pyvenv.cfg" and path.is_relative_to("opt/venv"):
                found = re.search(r"^version(?:_info)? = (.*)$", _read(archive, member).decode(), re.M)
                python = found[1] if found else ""
            elif path.suffix == ".dist-info" and path.is_relative_to("opt/venv"):
                name, _, version = path.stem.rpartition("-")
                libraries[name.lower().replace("_", "-")] = version
    return Contents(files, libraries, python, preloaded), configuration


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Refused("the docker command was not found") from None


def _inspected(reference: str, what: str) -> dict[str, Any] | None:
    words = ["buildx", "imagetools", "inspect", reference, "--format", f"{{{{json .{what}}}}}"]
    ended = _run(*words)
    if ended.returncode == 0:
        told: dict[str, Any] = json.loads(ended.stdout)
        return told
    said = _last_line(ended.stderr)
    if said.endswith("not found"):
        return None
    raise Refused(f"can't inspect {reference}: {said}")


@contextmanager
def _exported(reference: str, platform: str) -> Iterator[tarfile.TarFile]:
    """The file system of an image, as a stream."""
    container = docker("create", f"--platform={platform}", reference)
    try:
        with (
            subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as exporting,
            tarfile.open(fileobj=exporting.stdout, mode="r|") as archive,
        ):
            yield archive
    except tarfile.TarError as error:
        raise Refused(f"can't read {reference}: {error}") from error
    finally:
        subprocess.run(["docker", "rm", container], stdout=subprocess.DEVNULL, stderr=sys.stderr, check=False)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or ["no error message"])[-1].removeprefix("ERROR: ")
