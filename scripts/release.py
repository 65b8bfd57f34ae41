# SPDX-License-Identifier: AGPL-3.0-only
"""Reads and describes releases on GitHub. notes: prints the release notes, from CHANGELOG.md, what bump recorded of
upstream, and the output of `publish` on stdin. due: reads GitHub's list of releases on stdin; if `latest` should move,
prints the release and its images to test, as outputs of a workflow step. images: prints the published images to scan,
as JSON."""

import argparse
import datetime
import json
import re
import sys
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from .docker import digest
from .hub import absolute_links
from .publish import FORM, order
from .upstream import IMAGE, READ, ROOT, Base, Refused, Upstream, our_version

WAIT = datetime.timedelta(days=7)
"""How old a release must be before `latest` names it."""
TOO_LARGE = ("rocm",)
"""Variants whose image (30 GB) a workflow runner can't unpack."""
_UPSTREAM = "https://github.com/immich-app/immich/releases/tag"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.release", description=__doc__)
    parser.add_argument("what", choices=("notes", "due", "images"))
    options = parser.parse_args()
    try:
        upstream = Upstream.load()
        if options.what == "notes":
            read = json.loads(READ.read_text()) if READ.exists() else {}
            print(notes(our_version()[0], (ROOT / "CHANGELOG.md").read_text(), read, list(sys.stdin), upstream))
        elif options.what == "images":
            print(json.dumps(_there(upstream.every, (our_version()[1], "latest"))))
        elif release := due(json.load(sys.stdin), datetime.datetime.now(datetime.UTC)):
            ends = [base.suffix for base in upstream.every if digest(f"{IMAGE}:{release}{base.suffix}")]
            if any(digest(f"{IMAGE}:latest{end}") != digest(f"{IMAGE}:{release}{end}") for end in ends):
                print(f"release={release}\nimages={json.dumps(_there(upstream.every, (release,)))}")
    except Refused as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def due(releases: Iterable[Mapping[str, Any]], now: datetime.datetime) -> str | None:
    """The newest release that is at least a week old and neither a draft nor a pre-release."""
    names = [
        str(release["tag_name"])
        for release in releases
        if not (release["draft"] or release["prerelease"])
        and FORM.fullmatch(release["tag_name"])
        and now - datetime.datetime.fromisoformat(release["published_at"]) >= WAIT
    ]
    return max(names, key=order, default=None)


def notes(version: str, changelog: str, read: Mapping[str, Any], tags: Iterable[str], upstream: Upstream) -> str:
    """Release notes in Markdown. read: patches/upstream.json. tags: lines of `publish`. Raises Refused if CHANGELOG.md
    has no section for the version."""
    section = re.search(rf"^## {re.escape(version)}\b.*?\n(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    if not section or not section[1].strip():
        raise Refused(f"CHANGELOG.md has no section {version}")
    parts = [
        absolute_links(section[1].strip(), version),
        "## Upstream",
        f"immich-machine-learning [{upstream.version}]({_UPSTREAM}/{upstream.version})",
    ]
    if version.endswith("-r1") and (before := read.get("before")):
        parts[-1] += f", after {before}:"
        parts += ["\n".join(f"- {change}" for change in read["changes"]) or "- no changes in the image"]
    fixed = dict(line.strip().split(" -> ") for line in tags if FORM.match(line))
    rows = [f"| `{tag}` | `{value}` |" for tag, value in fixed.items()]
    parts += ["## Images", "\n".join(["| tag | digest |", "| --- | --- |", *rows])]
    if absent := [variant for variant, ends in upstream.suffixes.items() if f"{version}{ends[0]}" not in fixed]:
        parts += [f"Not in this release: {', '.join(absent)}; their tags are unchanged."]
    return "\n\n".join(parts)


def _there(bases: Iterable[Base], versions: Iterable[str]) -> list[dict[str, str]]:
    """The published images of these versions that a workflow runner can unpack."""
    found = []
    for version, base in product(versions, bases):
        if base.variant not in TOO_LARGE and (there := digest(f"{IMAGE}:{version}{base.suffix}")):
            about = {"target": base.target, "variant": base.variant, "platform": base.platform}
            name = base.target + ("-latest" if version == "latest" else "")
            found.append({**about, "name": name, "reference": f"{IMAGE}@{there}"})
    return found


if __name__ == "__main__":
    sys.exit(main())
