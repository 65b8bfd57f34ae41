# SPDX-License-Identifier: AGPL-3.0-only
"""A registry of images by its HTTP API (github.com/opencontainers/distribution-spec), with token authorization."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any, Protocol

from .upstream import Refused

INDEX = "application/vnd.oci.image.index.v1+json"
_INDEXES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_HUB = "docker.io"
_LARGEST_MANIFEST = 4 << 20
_LARGEST_BLOB = 16 << 30
"""Of a layer: compressed, and unpacked."""


class NotFound(Refused):
    """The registry has no such manifest or blob."""


@dataclass(frozen=True)
class Manifest:
    """A manifest as the registry has it: of one image, or an index of the images of several platforms."""

    media_type: str
    raw: bytes

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.raw).hexdigest()}"

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.raw)
        return content

    @property
    def is_index(self) -> bool:
        return self.media_type in _INDEXES

    def descriptor(self, platform: str) -> dict[str, Any]:
        """What an index says of this image."""
        system, machine = platform.split("/")
        about = {"mediaType": self.media_type, "digest": self.digest, "size": len(self.raw)}
        return {**about, "platform": {"os": system, "architecture": machine}}


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Bounded(io.RawIOBase):
    """A stream that fails past `limit` bytes, and knows the digest of what was read."""

    def __init__(self, stream: Readable, limit: int) -> None:
        self._stream, self._left, self._hash = stream, limit, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise Refused("a layer is larger than any real one")
        self._hash.update(data)
        buffer[: len(data)] = data
        return len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


@dataclass(frozen=True)
class Repository:
    """A repository of a registry, such as immich-app/immich-machine-learning at ghcr.io.

    insecure: plain HTTP. Who is asking is read from where `docker login` leaves it; without that, anonymous.
    """

    host: str
    name: str
    insecure: bool = False

    @classmethod
    def of(cls, reference: str, host: str | None = None, insecure: bool = False) -> "Repository":
        """reference: a repository with or without its host. host: the one that is asked instead."""
        first, _, rest = reference.partition("/")
        named = rest and ("." in first or ":" in first or first == "localhost")
        own, name = (first, rest) if named else (_HUB, reference)
        return cls(host or own, name, insecure)

    def __str__(self) -> str:
        return f"{self.host}/{self.name}"

    def manifest(self, reference: str) -> Manifest:
        """reference: a tag or a digest. Raises NotFound, and Refused for whatever else goes wrong."""
        headers = {"Accept": ", ".join((*_INDEXES, *_MANIFESTS))}
        with self._open("GET", f"manifests/{reference}", headers) as response:
            raw = response.read(_LARGEST_MANIFEST + 1)
            manifest = Manifest(response.headers.get_content_type(), raw)
        if len(raw) > _LARGEST_MANIFEST or manifest.media_type not in (*_INDEXES, *_MANIFESTS):
            raise Refused(f"{self}:{reference} is no image that we can read: {manifest.media_type}")
        if reference.startswith("sha256:") and manifest.digest != reference:
            raise Refused(f"{self.host} answered {reference} with another manifest, {manifest.digest}")
        return manifest

    def platforms(self, manifest: Manifest) -> dict[str, dict[str, Any]]:
        """Its images by platform (linux/arm64), as an index describes them; attestations are none."""
        if not manifest.is_index:
            with self.blob(manifest.content["config"]["digest"]) as stream:
                config = json.loads(stream.read(_LARGEST_MANIFEST))
            platform = f"{config['os']}/{config['architecture']}"
            return {platform: manifest.descriptor(platform)}
        found: dict[str, dict[str, Any]] = {}
        for entry in manifest.content["manifests"]:
            about = entry.get("platform", {})
            found.setdefault(f"{about.get('os')}/{about.get('architecture')}", entry)
        return {platform: entry for platform, entry in found.items() if platform != "unknown/unknown"}

    def put_manifest(self, reference: str, manifest: Manifest) -> None:
        """Stores it under a tag or under its digest."""
        headers = {"Content-Type": manifest.media_type}
        with self._open("PUT", f"manifests/{reference}", headers, manifest.raw):
            pass

    @contextlib.contextmanager
    def blob(self, digest: str, *, unpacked: bool = False) -> Iterator[IO[bytes]]:
        """The content, checked against its digest at the end. unpacked: of a layer that is packed with gzip."""
        with self._open("GET", f"blobs/{digest}", {}) as response:
            packed = _Bounded(response, _LARGEST_BLOB)
            buffered = io.BufferedReader(packed, 1 << 16)
            try:
                if not unpacked:
                    yield buffered
                else:
                    with gzip.open(buffered) as plain:
                        yield io.BufferedReader(_Bounded(plain, _LARGEST_BLOB))
                while buffered.read(1 << 16):  # what the reader left, for the digest
                    pass
            except (OSError, EOFError, HTTPException, zlib.error) as error:
                raise Refused(f"{self.host} broke off in {digest}: {error}") from error
            if packed.digest != digest:
                raise Refused(f"{self.host} answered {digest} with other content, {packed.digest}")

    def _open(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> HTTPResponse:
        """Raises Refused."""
        host = "registry-1.docker.io" if self.host == _HUB else self.host
        url = f"{'http' if self.insecure else 'https'}://{host}/v2/{self.name}/{path}"
        request = urllib.request.Request(url, body, dict(headers), method=method)
        try:
            return _send(request)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise _in_words(error, url) from error
            challenge = error.headers.get("WWW-Authenticate", "")
        # a header that does not go with a redirect: what a blob is redirected to has an authorization in its address
        request.add_unredirected_header(
            "Authorization", self._authorization(challenge, "pull,push" if body else "pull")
        )
        try:
            return _send(request)
        except urllib.error.HTTPError as error:
            raise _in_words(error, url) from error

    def _authorization(self, challenge: str, actions: str) -> str:
        """The header that this challenge asks for."""
        scheme, wanted = parse_challenge(challenge)
        login = _login(self.host)
        if scheme == "basic" and login:
            return f"Basic {login}"
        realm = wanted.get("realm", "")
        kinds = ("http", "https") if self.insecure else ("https",)
        if scheme != "bearer" or urllib.parse.urlsplit(realm).scheme not in kinds:
            raise Refused(f"{self.host} wants an authorization that we don't have: {challenge or 'it names none'}")
        query = {"scope": wanted.get("scope") or f"repository:{self.name}:{actions}"}
        if service := wanted.get("service"):
            query["service"] = service
        url = f"{realm}{'&' if '?' in realm else '?'}{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url)
        if login:
            request.add_unredirected_header("Authorization", f"Basic {login}")
        try:
            with _send(request) as response:
                told = json.loads(response.read(_LARGEST_MANIFEST))
        except urllib.error.HTTPError as error:
            raise _in_words(error, realm) from error
        return f"Bearer {told.get('token') or told.get('access_token')}"


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """A WWW-Authenticate header: its scheme in small letters and its parameters."""
    scheme, _, rest = header.strip().partition(" ")
    parameters = [item for item in urllib.request.parse_http_list(rest) if "=" in item]
    return scheme.lower(), urllib.request.parse_keqv_list(parameters)


def _send(request: urllib.request.Request) -> HTTPResponse:
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError:
        raise
    except (OSError, HTTPException) as error:
        raise Refused(f"{request.host} can't be reached: {getattr(error, 'reason', error)}") from error
    return response


def _in_words(error: urllib.error.HTTPError, url: str) -> Refused:
    with error:
        if error.code == 404:
            return NotFound(f"there is no {url}")
        said = " ".join(error.read(500).decode(errors="replace").split())
    return Refused(f"{url} answered {error.code} {error.reason} {said}".rstrip())


def _login(host: str) -> str | None:
    """User and password for this registry as `docker login` has written them, in base64."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        logins = json.loads((folder / "config.json").read_text()).get("auths", {})
    except (OSError, ValueError):
        return None
    login = logins.get("https://index.docker.io/v1/" if host == _HUB else host, {}).get("auth")
    return str(login) if login else None
