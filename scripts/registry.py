# SPDX-License-Identifier: AGPL-3.0-only
"""A registry's HTTP API, for what the docker command can't do: list tags, check the right to push, delete."""

import base64
import contextlib
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import Any

from .upstream import Refused

_INDEX = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
_SECONDS = 60
_MOST_PAGES = 1000


class Registry:
    """One repository, such as ghcr.io/owner/name; anonymous if no user is given. Every method raises Refused if the
    registry can't be reached or refuses."""

    def __init__(self, repository: str, user: str = "", password: str = "") -> None:
        host, _, name = repository.partition("/")
        self.repository = repository
        self._user, self._password, self._token = user, password, ""
        scheme = "http" if host.partition(":")[0] in ("127.0.0.1", "localhost") else "https"
        self._url = f"{scheme}://{'registry-1.docker.io' if host == 'docker.io' else host}/v2/{name}"

    def tags(self) -> Iterator[str]:
        """All tags, read page by page."""
        url = f"{self._url}/tags/list?n=1000"
        for _ in range(_MOST_PAGES):
            body, headers = self._ask("GET", url, accept="application/json")
            yield from json.loads(body).get("tags") or ()
            if not (following := re.search(r"<([^>]+)>", headers.get("Link", ""))):
                return
            url = urllib.parse.urljoin(url, following[1])

    def parts(self, reference: str) -> list[str]:
        """The digests of a tag's (or digest's) manifest and of the manifests in it; empty if there is none."""
        try:
            body, headers = self._ask("GET", f"{self._url}/manifests/{reference}", accept=f"{_INDEX}, {_MANIFEST}")
        except _NotFound:
            return []
        return [headers["Docker-Content-Digest"], *(entry["digest"] for entry in json.loads(body).get("manifests", ()))]

    def delete(self, digest: str) -> None:
        """Deletes a manifest."""
        self._ask("DELETE", f"{self._url}/manifests/{digest}")

    def check_push(self) -> None:
        """Starts an upload and cancels it, because a login alone does not prove the right to push."""
        _, headers = self._ask("POST", f"{self._url}/blobs/uploads/")
        with contextlib.suppress(Refused):  # the registry cancels it by itself later
            self._ask("DELETE", urllib.parse.urljoin(self._url, headers["Location"]))

    def _ask(self, method: str, url: str, accept: str = "*/*") -> tuple[bytes, Message]:
        try:
            return self._once(method, url, accept)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise self._refused(method, error) from None
            self._token = self._log_in(error.headers.get("WWW-Authenticate", ""))
        try:
            return self._once(method, url, accept)
        except urllib.error.HTTPError as error:
            raise self._refused(method, error) from None

    def _once(self, method: str, url: str, accept: str) -> tuple[bytes, Message]:
        headers = {"Accept": accept, **({"Authorization": self._token} if self._token else {})}
        return send(urllib.request.Request(url, method=method, headers=headers))

    def _log_in(self, challenge: str) -> str:
        """The Authorization header that the registry's challenge asks for."""
        basic = "Basic " + base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        if not (realm := re.search(r'realm="([^"]+)"', challenge)) or challenge.lower().startswith("basic"):
            return basic
        asked = dict(re.findall(r'(service|scope)="([^"]+)"', challenge))
        request = urllib.request.Request(f"{realm[1]}?{urllib.parse.urlencode(asked)}")
        if self._user:
            request.add_header("Authorization", basic)
        try:
            told: Mapping[str, Any] = json.loads(send(request)[0])
        except urllib.error.HTTPError as error:
            raise Refused(f"{self.repository}: the registry refused the login: {error.code} {error.reason}") from None
        return f"Bearer {told.get('token') or told['access_token']}"

    def _refused(self, method: str, error: urllib.error.HTTPError) -> Refused:
        kind = _NotFound if error.code == 404 else Refused
        return kind(f"{self.repository}: the registry refused {method}: {error.code} {error.reason}")


class _NotFound(Refused):
    pass


def send(request: urllib.request.Request) -> tuple[bytes, Message]:
    """The body and the headers of the reply. Raises HTTPError for a status of 400 or more, Refused without a reply."""
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
            return reply.read(), reply.headers
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        raise Refused(f"{urllib.parse.urlsplit(request.full_url).netloc} can't be reached: {error}") from None
