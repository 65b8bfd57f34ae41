# SPDX-License-Identifier: AGPL-3.0-only
"""Publishes the images of a release, one variant after the other: the fixed tag (v2.5.6-r1), which never changes, then
the one that moves (v2.5.6), which never goes back but by --retag. Only from a clean tree whose tag is VERSION. The
images are in the registry already, pushed by `build`. Whoever pushes is who `docker login` has logged in. Prints each
tag and its digest; what could not be published is said at the end, and holds nothing else up."""

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby

from .build import commit, pushed_name
from .docker import digest, docker, images
from .upstream import IMAGE, Base, Refused, Upstream, our_version

_FORM = re.compile(r"v(\d+)\.(\d+)\.(\d+)-r(\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.publish", description=__doc__)
    parser.add_argument("--variant", action="append", help="only this one; may be given again (default: all)")
    said = (
        "an image that `build --push-by-digest` pushed, by its target; others are taken from the tags of `build --push`"
    )
    parser.add_argument("--image", metavar="TARGET=DIGEST", action="append", default=[], help=said)
    parser.add_argument("--retag", metavar="vX.Y.Z-rN", help="only let the moving tags name this release, on purpose")
    options = parser.parse_args()
    failures: list[str] = []
    try:
        bases = [base for base in Upstream.load().bases if options.variant is None or base.variant in options.variant]
        if options.retag and not _FORM.fullmatch(options.retag):
            raise Refused(f"{options.retag!r} is not a release like v2.5.6-r1")
        given = _given(options.image, bases)
        wanted = "" if options.retag else _clean_tag(our_version()[0])
    except Refused as error:
        print(f"publish: {error}", file=sys.stderr)
        return 1
    for variant, group in groupby(bases, key=lambda base: base.variant):
        try:
            if options.retag:
                _retag(list(group), options.retag)
            else:
                _publish(list(group), given, wanted)
        except Refused as error:
            failures.append(f"publish: {variant}: {error}")
    print("\n".join(failures), end="\n" if failures else "", file=sys.stderr)
    return int(bool(failures))


def _given(told: Sequence[str], bases: Sequence[Base]) -> dict[str, str]:
    """Digests by target."""
    given = dict(image.partition("=")[::2] for image in told)
    for target, value in given.items():
        if target not in {base.target for base in bases}:
            raise Refused(f"there is no target {target}")
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
            raise Refused(f"{target}={value}: expected a digest, sha256:…")
    return given


def _clean_tag(version: str) -> str:
    """The commit of the tree. Raises Refused if it is not what the tag of this version holds."""
    head = commit()
    if head.endswith("-dirty"):
        raise Refused("the tree is not clean: what is published must be what the tag holds")
    tags = subprocess.run(["git", "tag", "--points-at", "HEAD"], capture_output=True, text=True, check=False)
    if version not in tags.stdout.split():
        raise Refused(f"this commit does not have the tag {version}, which VERSION says it is")
    return head


def _publish(bases: list[Base], given: Mapping[str, str], revision: str) -> None:
    """A variant: its images under their tags. The plain tag of one with several platforms names all of them."""
    pushed = {base: f"{IMAGE}@{given[base.target]}" if base.target in given else pushed_name(base) for base in bases}
    for base, source in pushed.items():
        _check(base, source, revision)
    sources = {base.suffix: [source] for base, source in pushed.items()}
    sources[bases[0].suffix] = list(pushed.values())
    version, upstream = our_version()
    for suffix in sources:
        _never_back(f"{IMAGE}:{upstream}{suffix}", version)
    for suffix, of in sources.items():
        _name(f"{IMAGE}:{version}{suffix}", of, fixed=True)
    for suffix in sources:
        _name(f"{IMAGE}:{upstream}{suffix}", [f"{IMAGE}:{version}{suffix}"])


def _check(base: Base, source: str, revision: str) -> None:
    there = images(source)
    if not there:
        made = f"python -m scripts.build --variant {base.variant} --platform {base.platform} --push"
        raise Refused(f"there is no image {source}: {made}")
    if base.platform not in there:
        raise Refused(f"the image of {base.target} is for {', '.join(there)} and not for {base.platform}")
    label = there[base.platform].labels.get("org.opencontainers.image.revision")
    if label != revision:
        raise Refused(f"{source} was built of commit {label} and not of this one, {revision}")


def _never_back(tag: str, version: str) -> None:
    """Raises Refused if the tag names a later release."""
    for image in images(tag).values():
        there = image.labels.get("org.opencontainers.image.version", "")
        if _FORM.fullmatch(there) and _order(there) > _order(version):
            raise Refused(f"{tag} is at {there} already; `publish --retag {version}` goes back on purpose")


def _order(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _name(tag: str, sources: list[str], *, fixed: bool = False) -> None:
    """Lets the tag name these images, with their attestations. fixed: and never others; raises Refused."""
    before = digest(tag)
    if fixed and before and sources != [tag]:
        planned = docker("buildx", "imagetools", "create", "--dry-run", "--tag", tag, *sources)
        if before not in (f"sha256:{hashlib.sha256(planned.encode()).hexdigest()}", digest(sources[0])):
            raise Refused(f"{tag} is published with other content, {before}: raise the revision in VERSION")
    elif sources != [tag]:
        docker("buildx", "imagetools", "create", "--tag", tag, *sources)
    print(f"{tag.rpartition(':')[2]} -> {digest(tag)}")


def _retag(bases: list[Base], release: str) -> None:
    """Raises Refused if that release has no such image."""
    suffixes = sorted({base.suffix for base in bases})
    for suffix in suffixes:
        if digest(f"{IMAGE}:{release}{suffix}") is None:
            raise Refused(f"{IMAGE}:{release}{suffix} was never published")
    for suffix in suffixes:
        _name(f"{IMAGE}:{release.partition('-')[0]}{suffix}", [f"{IMAGE}:{release}{suffix}"])


if __name__ == "__main__":
    sys.exit(main())
