# SPDX-License-Identifier: AGPL-3.0-only
"""Moves the overlay to another release of upstream: resolves the digests of all its images, compares the files that we
replace and the names that we use with the release before, and writes patches/upstream.toml and VERSION. Prints what a
maintainer must look at. Exit code 3: upstream no longer has a name that we use, and nothing was written."""

import argparse
import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import PurePosixPath

from .layers import image_files
from .names import Change, Names, compare, has_modules, names_used
from .registry import NotFound, Repository
from .upstream import RECORD, ROOT, VERSION, Refused, Upstream, Variant, our_version

_SOURCES = "usr/src"
_PATCHES = ROOT / "patches"
_RUNTIME = ROOT / "overlay" / "mt_photos_ml" / "runtime" / "immich.py"
_NAME_GONE = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bump", description=__doc__)
    parser.add_argument("version", metavar="VERSION", help="of upstream, such as v2.5.7")
    parser.add_argument("--registry", metavar="HOST[:PORT]", help="ask this one, which mirrors upstream's")
    parser.add_argument("--insecure", action="store_true", help="the registry speaks plain HTTP")
    parser.add_argument("--force", action="store_true", help="write the files although a name is gone")
    options = parser.parse_args()
    try:
        if not re.fullmatch(r"v\d+\.\d+\.\d+", options.version):
            raise Refused(f"{options.version!r} is not a version like v2.5.7")
        old = Upstream.load()
        repository = Repository.of(old.repository, options.registry, options.insecure)
        new = resolve(old, options.version, repository)
        names = names_used(_RUNTIME.read_text())
        before, after = (_sources(repository, release, names) for release in (old, new))
    except Refused as error:
        print(f"bump: {error}", file=sys.stderr)
        return 1
    changes = compare(before, after, names)
    gone = any(change.gone for change in changes)
    written = not gone or options.force
    if written:
        RECORD.write_text(new.text())
        if our_version()[1] != new.version:
            VERSION.write_text(f"{new.version}-r1\n")
    print(_report(old, new, _replaced(before, after), changes))
    now = f"written: patches/upstream.toml; VERSION is {our_version()[0]}"
    print(f"\n{now if written else 'nothing is written; --force writes all the same'}")
    return _NAME_GONE if gone else 0


def resolve(old: Upstream, version: str, repository: Repository) -> Upstream:
    """The release with the digests of every variant and platform that `old` has. Raises Refused where one is not."""
    variants, missing = [], []
    for variant in old.variants:
        tag, images = f"{version}{variant.suffix}", {}
        try:
            images = repository.platforms(repository.manifest(tag))
        except NotFound:
            missing.append(tag)
            continue
        missing += [f"{tag} for {platform}" for platform in variant.platforms if platform not in images]
        digests = {platform: images[platform]["digest"] for platform in variant.platforms if platform in images}
        variants.append(Variant(variant.name, variant.suffix, variant.platforms, digests))
    if missing:
        raise Refused(f"{repository} lacks {', '.join(missing)}")
    return Upstream(old.repository, version, tuple(variants))


def _sources(repository: Repository, release: Upstream, names: Names) -> dict[str, bytes]:
    """The files of upstream's package, out of its first image; the package is the same in all."""
    base = release.bases[0]
    reference = base.reference.rpartition("@")[2] if "@" in base.reference else release.version
    replaced = {str(path) for path in _patched()}

    def enough(found: Mapping[str, bytes]) -> bool:
        return has_modules(found, names) and replaced <= found.keys()

    files = image_files(repository, reference, base.platform, _SOURCES, enough)
    if not any(PurePosixPath(path).parts[0] == "immich_ml" for path in files):
        raise Refused(f"{base.reference} has no /{_SOURCES}/immich_ml")
    return files


def _patched() -> list[PurePosixPath]:
    """The files of upstream that ours replace, by their path below /usr/src."""
    return sorted(PurePosixPath(path.relative_to(_PATCHES)) for path in _PATCHES.rglob("*.py"))


def _replaced(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """What has become of the files that ours replace."""
    told = []
    for path in map(str, _patched()):
        old, new = (files.get(path, b"").decode(errors="replace").splitlines() for files in (before, after))
        if path not in after:
            told.append(f"{path}, which ours replaces, is gone")
        elif old != new:
            lines = list(difflib.unified_diff(old, new, lineterm="", n=2))[2:]  # without the names of the two
            difference = "\n".join(f"  {line}" for line in lines)
            told.append(f"{path}, which ours replaces, has changed:\n{difference}")
    return told


def _report(old: Upstream, new: Upstream, replaced: list[str], changes: list[Change]) -> str:
    lines = [f"immich-machine-learning {old.version} -> {new.version}", ""]
    for variant in new.variants:
        lines += [f"{variant.name} {platform} {digest}" for platform, digest in variant.digests.items()]
    gone = [change.text for change in changes if change.gone]
    look = [*(change.text for change in changes if not change.gone), *replaced]
    lines += ["", *(f"GONE: {text}" for text in gone), *(f"LOOK: {text}" for text in look)]
    if not gone and not look:
        lines.append("every name that we use and every file that ours replaces is as it was")
    lines += [
        "",
        "then: set WRITTEN_FOR in overlay/mt_photos_ml/runtime/immich.py; make test-image; docs/maintaining.md",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
