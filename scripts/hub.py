# SPDX-License-Identifier: AGPL-3.0-only
"""Maintains our repository on Docker Hub. login: checks that DOCKERHUB_TOKEN of DOCKERHUB_USERNAME may push, and warns
if it expires soon (DOCKERHUB_TOKEN_EXPIRES is the date). page: sets the description from README.md and makes tags like
v2.5.6-r1 immutable. prune DIGEST…: deletes those of these images that have no tag."""

import argparse
import datetime
import json
import os
import re
import sys
import urllib.error
import urllib.request
from typing import Any

from .registry import Registry, send
from .upstream import IMAGE, ROOT, Refused, warn

HUB = os.environ.get("HUB") or "https://hub.docker.com"
FIXED = r"v.*-r[0-9]+(-.*)?"
"""The tags that never change, as a pattern for Docker Hub's setting."""
_WARN_DAYS = 30
_LONGEST = 25_000
_PROJECT = "github.com/dev-fox-101/mt-photos-ml"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.hub", description=__doc__)
    parser.add_argument("what", choices=("login", "page", "prune"))
    parser.add_argument("digests", metavar="DIGEST", nargs="*")
    options = parser.parse_args()
    user, token = os.environ.get("DOCKERHUB_USERNAME", ""), os.environ.get("DOCKERHUB_TOKEN", "")
    try:
        if not token:
            raise Refused("DOCKERHUB_TOKEN is not set")
        if options.what == "login":
            Registry(IMAGE, user, token).check_push()
            if said := ends_soon(os.environ.get("DOCKERHUB_TOKEN_EXPIRES", ""), datetime.date.today()):
                warn(said)
        elif options.what == "page":
            _page(user, token)
        else:
            print("\n".join(f"deleted: {digest}" for digest in prune(Registry(IMAGE, user, token), options.digests)))
    except Refused as error:
        print(f"hub: {error}", file=sys.stderr)
        return 1
    return 0


def ends_soon(date: str, today: datetime.date) -> str:
    """A warning if a token that expires on this date, such as 2027-01-31, expires soon; else "". Raises Refused."""
    if not date:
        return "DOCKERHUB_TOKEN_EXPIRES is not set: there will be no warning before the token expires"
    try:
        days = (datetime.date.fromisoformat(date) - today).days
    except ValueError:
        raise Refused(f"DOCKERHUB_TOKEN_EXPIRES is {date!r}, not a date like 2027-01-31") from None
    said = f"Docker Hub's token expires on {date}, in {days} days: docs/maintaining.md says how to replace it"
    return said if days <= _WARN_DAYS else ""


def description(readme: str) -> str:
    """The README with absolute links, for Docker Hub. Raises Refused if it is too long."""
    text = absolute_links(readme)
    if len(text.encode()) > _LONGEST:
        raise Refused(f"README.md is too long for Docker Hub, whose limit is {_LONGEST} bytes")
    return text


def absolute_links(markdown: str, ref: str = "main") -> str:
    """The text of a file at the root, with its relative links to files of this branch or tag on GitHub."""
    links = re.sub(r"(?<=\]\()(?!https?:|#)", f"https://{_PROJECT}/blob/{ref}/", markdown)
    return re.sub(rf"(!\[[^]]*\]\(https://{_PROJECT})/blob/", r"\1/raw/", links)


def prune(registry: Registry, digests: list[str]) -> list[str]:
    """Deletes manifests, and those in them, that no tag refers to; returns the deleted ones. Warns of failures."""
    kept = {part for tag in registry.tags() for part in registry.parts(tag)}
    deleted = []
    for part in (part for digest in digests for part in registry.parts(digest) if part not in kept):
        try:
            registry.delete(part)
            deleted.append(part)
        except Refused as error:
            warn(f"{part}: {error}")
    return deleted


def _page(user: str, token: str) -> None:
    told = _hub("POST", "/v2/auth/token", {"identifier": user, "secret": token})
    owner, name = IMAGE.split("/")[-2:]
    text = {"full_description": description((ROOT / "README.md").read_text())}
    _hub("PATCH", f"/v2/repositories/{owner}/{name}", text, told["access_token"])
    rules = {"immutable_tags": True, "immutable_tags_rules": [FIXED]}
    _hub("PATCH", f"/v2/namespaces/{owner}/repositories/{name}/immutabletags", rules, told["access_token"])


def _hub(method: str, path: str, body: dict[str, Any], token: str = "") -> dict[str, Any]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        data = send(urllib.request.Request(f"{HUB}{path}", json.dumps(body).encode(), headers, method=method))[0]
    except urllib.error.HTTPError as error:
        raise Refused(f"Docker Hub refuses {method} {path}: {error.code} {error.reason}") from None
    told: dict[str, Any] = json.loads(data or b"{}")
    return told


if __name__ == "__main__":
    sys.exit(main())
