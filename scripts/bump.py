# SPDX-License-Identifier: AGPL-3.0-only
"""Moves the overlay to another release of upstream: finds the digests of its images, compares them with the release
before (sources, configuration, libraries), and writes patches/upstream.toml, what it read into patches/upstream.json,
VERSION, a section of CHANGELOG.md, and the tags that users are told. At the release that is recorded it looks for what
upstream has published since. Prints what a maintainer must look at. Needs Docker with buildx, and pulls the image for
the processor of both releases; runs nothing of them. Exit code 3: something that we rely on is gone, and nothing was
written."""

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
    parser.add_argument("version", metavar="VERSION", help="of upstream, such as v2.5.7")
    parser.add_argument("--registry", metavar="HOST[:PORT]", help="ask this one, which mirrors upstream's")
    parser.add_argument("--force", action="store_true", help="write the files although something is gone")
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
            print(f"patches/upstream.json is not there: {old.version} is pulled, and it is made", file=sys.stderr)
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
    now = f"written: patches/, docker-bake.hcl, CHANGELOG.md, tags that users are told; VERSION is {our_version()[0]}"
    print(f"\n{now if writes else 'nothing is written; --force writes all the same'}")
    return _GONE if gone else 0


def unused(repository: str, release: Upstream, before: tuple[str, ...]) -> tuple[str, ...]:
    """Endings of the release's tags for which we have no variant. before: kept if the tags can't be listed."""
    form = re.compile(rf"{re.escape(release.version)}(-(?!rc|alpha|beta)[a-z][a-z0-9-]*)")
    try:
        ends = {found[1] for tag in Registry(repository).tags() if (found := form.fullmatch(tag))}
    except Refused as error:
        warn(f"new variants of upstream were not looked for: {error}")
        return before
    return tuple(sorted(ends - {variant.suffix for variant in release.variants}))


def _our_next(old: Upstream, new: Upstream) -> str:
    """Our version after the bump: the next revision if ours is published and would change."""
    ours, upstream = our_version()
    if upstream != new.version:
        return f"{new.version}-r1"
    try:
        if old.variants == new.variants or docker.digest(f"{IMAGE}:{ours}") is None:
            return ours
    except Refused as error:
        warn(f"VERSION is kept; raise its revision if it is published: {error}")
        return ours
    return f"{upstream}-r{int(ours.rpartition('-r')[2]) + 1}"


def _write(old: Upstream, new: Upstream, ours: str, read: dict[str, Any]) -> None:
    RECORD.write_text(new.text())
    READ.write_text(json.dumps(read, indent=1, sort_keys=True) + "\n")
    BAKE.write_text(BAKE.read_text().replace(f'default = "{old.version}"', f'default = "{new.version}"'))
    rename(old, new)
    if ours != our_version()[0]:
        VERSION.write_text(f"{ours}\n")
        added = f"Upstream {new.version} in place of {old.version}."
        late = f"Images that upstream has published late, of {new.version}."
        begin_section(ours, added if new.version != old.version else late)


def _since(old: Upstream, new: Upstream, changes: list[Change]) -> dict[str, Any]:
    """What the new release changed, the first line of each; at the release that is recorded, what was kept of that."""
    if new.version != old.version:
        return {"before": old.version, "changes": [change.text.partition("\n")[0] for change in changes]}
    kept = json.loads(READ.read_text()) if READ.exists() else {}
    return {name: kept[name] for name in ("before", "changes") if name in kept}


def resolve(old: Upstream, version: str, found: dict[str, dict[str, Image]]) -> tuple[Upstream, list[str]]:
    """The release with the digests that it has, and words on what it has not: a variant that upstream did not publish
    this time stays at its version. found: its images by variant and platform. Raises Refused if the processor's is
    not there."""
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
    """The images of a release. found: where they were looked at already. Raises Refused."""
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
    """What is kept of a release, and what it changed."""
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
    """The reference in that repository, by its digest where it has one, as a mirror has no other tags for certain."""
    tag = reference.rpartition("/")[2].partition(":")[2]
    name, _, digest = tag.partition("@")
    return f"{repository}@{digest}" if digest else f"{repository}:{name}"


def _report(old: Upstream, new: Upstream, words: list[str], changes: list[Change]) -> str:
    lines = [f"immich-machine-learning {old.version} -> {new.version}", ""]
    for variant in new.variants:
        lines += [f"{variant.name} {platform} {digest}" for platform, digest in variant.digests.items()]
    relied = [change for change in changes if change.relied]
    added = [f"{end}: docs/maintaining.md says what a variant takes" for end in new.unused if end not in old.unused]
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
        lines += ["", "sources, configuration and libraries are as they were"]
    lines += ["", "then: docs/maintaining.md, Bump day"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
