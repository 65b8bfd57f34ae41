# SPDX-License-Identifier: AGPL-3.0-only
"""The files of an image, taken out of its layers without running it."""

import posixpath
import tarfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import IO

from .registry import Repository
from .upstream import Refused

_LARGEST_FILE = 1 << 20
_MOST_FILES = 2000


def image_files(
    repository: Repository, reference: str, platform: str, folder: str, enough: Callable[[Mapping[str, bytes]], bool]
) -> dict[str, bytes]:
    """The files under `folder` of the image for this platform. Raises Refused."""
    manifest = repository.manifest(reference)
    if manifest.is_index:
        images = repository.platforms(manifest)
        if platform not in images:
            raise Refused(f"{repository} {reference} has no image for {platform}")
        manifest = repository.manifest(images[platform]["digest"])
    layers = [(layer["digest"], layer["mediaType"]) for layer in reversed(manifest.content["layers"])]
    for digest, kind in layers:
        if not kind.endswith(("+gzip", ".gzip")):
            raise Refused(f"{repository} {reference} has a layer that is not packed with gzip: {digest} is {kind}")
    return read_layers((repository.blob(digest, unpacked=True) for digest, _ in layers), folder, enough)


def read_layers(
    layers: Iterable[AbstractContextManager[IO[bytes]]], folder: str, enough: Callable[[Mapping[str, bytes]], bool]
) -> dict[str, bytes]:
    """The regular files under `folder`, by their path below it. layers: tar files, the topmost first; a file that a
    layer has, or deletes (github.com/opencontainers/image-spec, layer.md), hides those of its path in the layers below.
    enough: told what there is after each layer; once it is content, the layers below are left alone."""
    found: dict[str, bytes] = {}
    hidden: set[str] = set()
    for layer in layers:
        with layer as stream:
            try:
                hidden |= _read_layer(stream, folder, hidden, found)
            except tarfile.TarError as error:
                raise Refused(f"a layer is no tar file: {error}") from error
        if enough(found):
            break
    return found


def _read_layer(stream: IO[bytes], folder: str, hidden: set[str], found: dict[str, bytes]) -> set[str]:
    """Adds the layer's files to `found`; returns what it hides of the layers below."""
    hides: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            path = posixpath.normpath(f"/{member.name}").lstrip("/")
            parent, name = posixpath.split(path)
            if name == ".wh..wh..opq":
                hides.add(parent)
            elif name.startswith(".wh."):
                hides.add(posixpath.join(parent, name.removeprefix(".wh.")))
            elif not member.isdir() and (_within(path, folder) or _within(folder, path)):
                hides.add(path)
                below = posixpath.relpath(path, folder)
                if member.isreg() and _within(path, folder) and not any(_within(path, other) for other in hidden):
                    if member.size > _LARGEST_FILE or len(found) >= _MOST_FILES:
                        raise Refused(f"{folder} holds more than a package of Python should: {path}")
                    content = archive.extractfile(member)
                    found[below] = content.read() if content else b""
    return hides


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
