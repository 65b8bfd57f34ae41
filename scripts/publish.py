# SPDX-License-Identifier: AGPL-3.0-only
"""Tags the images of a release that `build` has pushed. Each variant gets its fixed tag (v2.5.6-r1), which never
changes, then its moving tag (v2.5.6), which goes back only with --retag. Run `docker login` first. Needs a clean tree
at the git tag that VERSION names, except for --retag and --latest. Skips a variant whose base digest is not known.
Prints each tag and its digest. If a variant fails, publishes the others and reports the failure at the end."""

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from .build import commit, pushed_name
from .docker import Image, digest, docker, images
from .upstream import IMAGE, Base, Refused, Upstream, our_version, warn

FORM = re.compile(r"v(\d+)\.(\d+)\.(\d+)-r(\d+)")
"""Our version. A tag that begins with one never changes."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.publish", description=__doc__)
    parser.add_argument("--variant", action="append", help="only this variant; repeatable (default: all)")
    said = "a target's image from `build --push-by-digest`; for other targets, the tags of `build --push` are used"
    parser.add_argument("--image", metavar="TARGET=DIGEST", action="append", default=[], help=said)
    parser.add_argument("--retag", metavar="vX.Y.Z-rN", help="only point the moving tags to this release")
    parser.add_argument("--latest", metavar="vX.Y.Z-rN", help="only point `latest` and latest-VARIANT to it")
    parser.add_argument("--back", action="store_true", help="with --latest: even if they name a later release")
    options = parser.parse_args()
    upstream = Upstream.load()
    try:
        if unknown := set(options.variant or ()) - upstream.suffixes.keys():
            raise Refused(f"there is no variant {min(unknown)}")
        if release := options.retag or options.latest:
            failures = _move(release, upstream, options)
        else:
            failures = _publish_all(upstream, options)
    except Refused as error:
        failures = [str(error)]
    for failure in failures:
        print(f"publish: {failure}", file=sys.stderr)
    return int(bool(failures))


def _publish_all(upstream: Upstream, options: argparse.Namespace) -> list[str]:
    """Publishes every variant, or those of --variant; returns the failures."""
    for base in (upstream.base(variant) for variant in options.variant or ()):
        if not base.digest:
            raise Refused(base.unknown_digest)
    bases = [base for base in upstream.publishable() if base.variant in (options.variant or upstream.suffixes)]
    given, revision = _given(options.image, bases), _clean_tag(our_version()[0])
    groups = {variant: list(group) for variant, group in groupby(bases, key=lambda base: base.variant)}
    return _each(groups, lambda variant: _publish(groups[variant], given, revision))


def _move(release: str, upstream: Upstream, options: argparse.Namespace) -> list[str]:
    """Points moving tags to a published release; returns the failures. Skips a variant that is not in the release,
    unless --variant asks for it."""
    if not FORM.fullmatch(release):
        raise Refused(f"{release!r} is not a release like v2.5.6-r1")
    there = {v: [s for s in ends if digest(f"{IMAGE}:{release}{s}")] for v, ends in upstream.suffixes.items()}
    wanted = options.variant or [variant for variant, ends in there.items() if ends]
    if not wanted:
        raise Refused(f"{IMAGE}:{release} was never published")
    for variant in (variant for variant, ends in there.items() if not (ends or options.variant)):
        warn(f"{variant} is unchanged: {IMAGE}:{release}{upstream.suffixes[variant][0]} was never published")

    def move(variant: str) -> None:
        for suffix in upstream.suffixes[variant]:
            if suffix not in there[variant]:
                raise Refused(f"{IMAGE}:{release}{suffix} was never published")
        for suffix in upstream.suffixes[variant]:
            _move_one(release, suffix, options)

    return _each(wanted, move)


def _move_one(release: str, suffix: str, options: argparse.Namespace) -> None:
    """With --latest, points `latest` to the release. With --retag, points the tag of its upstream version to it, and
    also `latest` if that names another release of the same upstream version. Raises Refused."""
    source, latest, moving = f"{IMAGE}:{release}{suffix}", f"{IMAGE}:latest{suffix}", release.partition("-")[0]
    if options.latest:
        if not options.back:
            _never_back(latest, release, f"publish --latest {release} --back")
        _name(latest, [source])
    else:
        _name(f"{IMAGE}:{moving}{suffix}", [source])
        there = images(latest)
        if any(_version(image).startswith(f"{moving}-") for image in there.values()) and there != images(source):
            _name(latest, [source])


def _each(variants: Iterable[str], do: Callable[[str], None]) -> list[str]:
    """Calls `do` for each variant; returns the failures."""
    failures = []
    for variant in variants:
        try:
            do(variant)
        except Refused as error:
            failures.append(f"{variant}: {error}")
    return failures


def _given(told: Sequence[str], bases: Sequence[Base]) -> dict[str, str]:
    """The digests in --image, by target. Raises Refused."""
    given = dict(image.partition("=")[::2] for image in told)
    for target, value in given.items():
        if target not in {base.target for base in bases}:
            raise Refused(f"there is no target {target}")
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
            raise Refused(f"{target}={value}: expected a digest, sha256:…")
    return given


def _clean_tag(version: str) -> str:
    """The commit of the tree. Raises Refused if the tree is not clean or not at this version's tag."""
    head = commit()
    if head.endswith("-dirty"):
        raise Refused("the tree has uncommitted changes: commit or undo them, then publish from the version tag")
    tags = subprocess.run(["git", "tag", "--points-at", "HEAD"], capture_output=True, text=True, check=False)
    if version not in tags.stdout.split():
        raise Refused(f"VERSION is {version}, but this commit does not have that tag")
    return head


def _publish(bases: list[Base], given: Mapping[str, str], revision: str) -> None:
    """Publishes a variant. If it has several platforms, its plain tag covers all of them."""
    pushed = {base: f"{IMAGE}@{given[base.target]}" if base.target in given else pushed_name(base) for base in bases}
    for base, source in pushed.items():
        _check(base, source, revision)
    sources = {base.suffix: [source] for base, source in pushed.items()}
    sources[bases[0].suffix] = list(pushed.values())
    version, upstream = our_version()
    for suffix in sources:
        _never_back(f"{IMAGE}:{upstream}{suffix}", version, f"publish --retag {version}")
    for suffix, of in sources.items():
        _name(f"{IMAGE}:{version}{suffix}", of, fixed=True)
    for suffix in sources:
        _name(f"{IMAGE}:{upstream}{suffix}", [f"{IMAGE}:{version}{suffix}"])


def _check(base: Base, source: str, revision: str) -> None:
    there = images(source)
    if not there:
        made = f"python -m scripts.build --variant {base.variant} --platform {base.platform} --push"
        raise Refused(f"there is no image {source}; to build it: {made}")
    if base.platform not in there:
        raise Refused(f"the image of {base.target} is for {', '.join(there)}, not for {base.platform}")
    label = there[base.platform].labels.get("org.opencontainers.image.revision")
    if label != revision:
        raise Refused(f"{source} was built from commit {label}, not from this one, {revision}")


def _never_back(tag: str, version: str, on_purpose: str) -> None:
    """Raises Refused if the tag is at a later release."""
    for image in images(tag).values():
        if FORM.fullmatch(there := _version(image)) and order(there) > order(version):
            raise Refused(f"{tag} is at {there}, which is later; to go back, use `{on_purpose}`")


def _version(image: Image) -> str:
    """Our version in the image's label; empty if there is none."""
    return image.labels.get("org.opencontainers.image.version", "")


def order(version: str) -> list[int]:
    """A key that sorts our versions, the latest last."""
    return [int(number) for number in re.findall(r"\d+", version)]


def _name(tag: str, sources: list[str], *, fixed: bool = False) -> None:
    """Points the tag to these images and their attestations. fixed: raises Refused if it has other content."""
    before = digest(tag)
    if fixed and before and sources != [tag]:
        planned = docker("buildx", "imagetools", "create", "--dry-run", "--tag", tag, *sources)
        if before not in (f"sha256:{hashlib.sha256(planned.encode()).hexdigest()}", digest(sources[0])):
            raise Refused(f"{tag} is published with other content, {before}: raise the revision in VERSION")
    elif sources != [tag]:
        docker("buildx", "imagetools", "create", "--tag", tag, *sources)
    print(f"{tag.rpartition(':')[2]} -> {digest(tag)}")


if __name__ == "__main__":
    sys.exit(main())
