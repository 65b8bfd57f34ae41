# SPDX-License-Identifier: AGPL-3.0-only
"""Moves the overlay to another release of upstream. Finds the digests of its images, compares them with the previous
release (sources, configuration, libraries), and updates patches/upstream.toml, patches/upstream.json (what it read),
VERSION, CHANGELOG.md and the image tags in the docs. Given the release that is recorded, it looks for images that
upstream has published since. Prints what a maintainer must check. Needs Docker with buildx; pulls the CPU image of
both releases but runs nothing in it. Exit code 3: something that we rely on is gone; without --force, no file was
changed."""

import argparse
import hashlib
import json
import re
import sys
from dataclasses import replace
from typing import Any

from . import docker
from .compare import Change, Release, compare
from .docker import Image
from .registry import Registry
from .tags import begin_section, rename
from .upstream import IMAGE, READ, RECORD, ROOT, VERSION, Refused, Upstream, Variant, our_version, warn

BAKE = ROOT / "docker-bake.hcl"

_GONE = 3
_SHOWN = ("User", "WorkingDir", "Entrypoint", "Cmd", "Healthcheck", "ExposedPorts", "Env")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bump", description=__doc__)
    parser.add_argument("version", metavar="VERSION", help="upstream's release, such as v2.5.7")
    parser.add_argument("--registry", metavar="HOST[:PORT]", help="use this mirror of upstream's registry")
    parser.add_argument("--force", action="store_true", help="write the files even if something is gone")
    options = parser.parse_args()
    try:
        if not re.fullmatch(r"v\d+\.\d+\.\d+", options.version):
            raise Refused(f"{options.version!r} is not a version like v2.5.7")
        old = Upstream.load()
        repository = old.repository
        if options.registry:
            repository = f"{options.registry}/{repository.partition('/')[2]}"
        found = {
            variant.name: docker.images(f"{repository}:{options.version}{variant.suffix}") for variant in old.variants
        }
        new, words = resolve(old, options.version, found)
        new = replace(new, unused=unused(repository, new, old.unused))
        if new == old and READ.exists():
            print(f"immich-machine-learning {old.version}: nothing is new")
            return 0
        if not READ.exists():
            print(f"patches/upstream.json is missing: pulling {old.version} to create it", file=sys.stderr)
        ours = _our_next(old, new)
        before = read(old, repository, None)
        after = read(new, repository, found) if new != old or options.version != old.version else before
    except Refused as error:
        print(f"bump: {error}", file=sys.stderr)
        return 1
    changes = compare(before, after)
    gone = any(change.gone for change in changes)
    if writes := not gone or options.force:
        _write(old, new, ours, record(after, _since(old, new, changes)))
    print(_report(old, new, words, changes))
    now = f"updated: patches/, docker-bake.hcl, CHANGELOG.md, the tags in the docs; VERSION is {our_version()[0]}"
    print(f"\n{now if writes else 'no file was changed; --force changes them anyway'}")
    return _GONE if gone else 0


def unused(repository: str, release: Upstream, before: tuple[str, ...]) -> tuple[str, ...]:
    """Suffixes of the release's tags for which we have no variant; `before` if the tags can't be listed."""
    form = re.compile(rf"{re.escape(release.version)}(-(?!rc|alpha|beta)[a-z][a-z0-9-]*)")
    try:
        ends = {found[1] for tag in Registry(repository).tags() if (found := form.fullmatch(tag))}
    except Refused as error:
        warn(f"can't look for new variants of upstream: {error}")
        return before
    return tuple(sorted(ends - {variant.suffix for variant in release.variants}))


def _our_next(old: Upstream, new: Upstream) -> str:
    """Our version after the bump: the next revision if this one is published and its images would change."""
    ours, upstream = our_version()
    if upstream != new.version:
        return f"{new.version}-r1"
    try:
        if old.variants == new.variants or docker.digest(f"{IMAGE}:{ours}") is None:
            return ours
    except Refused as error:
        warn(f"can't check whether {ours} is published; if it is, raise the revision in VERSION: {error}")
        return ours
    return f"{upstream}-r{int(ours.rpartition('-r')[2]) + 1}"


def _write(old: Upstream, new: Upstream, ours: str, read: dict[str, Any]) -> None:
    RECORD.write_text(new.text())
    READ.write_text(json.dumps(read, indent=1, sort_keys=True) + "\n")
    BAKE.write_text(BAKE.read_text().replace(f'default = "{old.version}"', f'default = "{new.version}"'))
    rename(old, new)
    if ours != our_version()[0]:
        VERSION.write_text(f"{ours}\n")
        added = f"Upstream {new.version} instead of {old.version}."
        late = f"Images of {new.version} that upstream published late."
        begin_section(ours, added if new.version != old.version else late)


def _since(old: Upstream, new: Upstream, changes: list[Change]) -> dict[str, Any]:
    """The first line of each change; if the release stays the same, what patches/upstream.json has of it."""
    if new.version != old.version:
        return {"before": old.version, "changes": [change.text.partition("\n")[0] for change in changes]}
    kept = json.loads(READ.read_text()) if READ.exists() else {}
    return {name: kept[name] for name in ("before", "changes") if name in kept}


def resolve(old: Upstream, version: str, found: dict[str, dict[str, Image]]) -> tuple[Upstream, list[str]]:
    """The release with its digests, and a message for each variant that upstream did not publish with it, which stays
    at its version. found: images by variant and platform. Raises Refused if the CPU image is missing."""
    variants, words = [], []
    for variant in old.variants:
        there = found[variant.name]
        missing = [platform for platform in variant.platforms if platform not in there]
        if not missing:
            digests = {platform: there[platform].digest for platform in variant.platforms}
            variants.append(Variant(variant.name, variant.suffix, variant.platforms, digests))
            continue
        said = f"{version}{variant.suffix}" + (f" for {', '.join(missing)}" if there else "")
        if variant is old.variants[0]:
            raise Refused(f"upstream has not published {said}")
        kept = variant.version or old.version
        words.append(f"{variant.name}: upstream has not published {said}; it stays at {kept}")
        variants.append(replace(variant, version=kept if kept != version else None))
    return Upstream(old.repository, version, tuple(variants), old.unused), words


def read(release: Upstream, repository: str, found: dict[str, dict[str, Image]] | None) -> Release:
    """Reads the images of a release. found: its images by variant and platform, if known. Raises Refused."""
    first = release.bases[0]
    reference = _in(repository, first.reference)
    contents, configuration = docker.contents(reference, first.platform)
    if "immich_ml/main.py" not in contents.files:
        raise Refused(f"{reference} has no /usr/src/immich_ml/main.py")
    others: dict[str, dict[str, Any]] = {}
    for base in release.bases[1:]:
        there = found[base.variant] if found else docker.images(_in(repository, base.reference))
        if base.platform in there:
            others[base.target] = there[base.platform].configuration
    return Release(contents, configuration, others)


def record(release: Release, since: dict[str, Any]) -> dict[str, Any]:
    """The content of patches/upstream.json. since: what the release changed."""
    configurations = {"cpu-amd64": release.configuration, **release.others}
    return {
        **since,
        "files": {path: hashlib.sha256(data).hexdigest() for path, data in release.contents.files.items()},
        "libraries": release.contents.libraries,
        "python": release.contents.python,
        "preloaded": release.contents.preloaded,
        "configuration": {
            name: {key: about[key] for key in _SHOWN if about.get(key)} for name, about in configurations.items()
        },
    }


def _in(repository: str, reference: str) -> str:
    """The reference in that repository, by digest if it has one, because a mirror may lack the tag."""
    tag = reference.rpartition("/")[2].partition(":")[2]
    name, _, digest = tag.partition("@")
    return f"{repository}@{digest}" if digest else f"{repository}:{name}"


def _report(old: Upstream, new: Upstream, words: list[str], changes: list[Change]) -> str:
    lines = [f"immich-machine-learning {old.version} -> {new.version}", ""]
    for variant in new.variants:
        lines += [f"{variant.name} {platform} {digest}" for platform, digest in variant.digests.items()]
    relied = [change for change in changes if change.relied]
    added = [f"{end}: docs/maintaining.md says how to add a variant" for end in new.unused if end not in old.unused]
    for title, told in (
        ("not published this time", words),
        ("published, and nothing is built on it", added),
        ("WE RELY ON THIS AND IT IS GONE", [change.text for change in relied if change.gone]),
        ("we rely on this and it changed", [change.text for change in relied if not change.gone]),
        ("changed besides", [change.text for change in changes if not change.relied]),
    ):
        if told:
            lines += ["", f"{title}:", *(f"- {text}" for text in told)]
    if not changes:
        lines += ["", "sources, configuration and libraries are unchanged"]
    lines += ["", "next: docs/maintaining.md, Bump day"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
