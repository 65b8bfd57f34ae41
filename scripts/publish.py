# SPDX-License-Identifier: AGPL-3.0-only
"""Publishes the images of a release: first each image, then the manifests of several platforms, then the tags. Only
from a clean tree whose tag is VERSION. A fixed tag (v2.5.6-r1) never changes: what is published stays, and publishing
it again changes nothing. Whoever pushes is who `docker login` has logged in. Prints each tag and its digest."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from .build import names
from .registry import INDEX, Manifest, NotFound, Repository
from .upstream import IMAGE, ROOT, Base, Refused, Upstream, our_version


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.publish", description=__doc__)
    parser.add_argument("--registry", metavar="HOST[:PORT]", help=f"push there (default: where {IMAGE} is)")
    parser.add_argument("--insecure", action="store_true", help="the registry speaks plain HTTP")
    parser.add_argument(
        "--image",
        metavar="TARGET=DIGEST",
        action="append",
        default=[],
        help="an image that is pushed already (build --push-by-digest), by its target in docker-bake.hcl, such as "
        "cpu-arm64=sha256:…; the others are pushed from this machine, as build has left them",
    )
    options = parser.parse_args()
    try:
        version, upstream = our_version()
        commit = _clean_tag(version)
        repository = Repository.of(IMAGE, options.registry, options.insecure)
        bases = Upstream.load().bases
        digests = _given(options.image, bases)
        local = [base for base in bases if base.target not in digests]
        tags = {base.target: f"{version}{base.suffix or '-' + base.platform.split('/')[1]}" for base in local}
        pushed = {base.target: _pushed(base, repository, tags[base.target], commit) for base in local}
        for base in local:
            digests[base.target] = pushed[base.target] or _push(base, repository, tags[base.target])
        manifests = _manifests(bases, repository, digests)
        _tag(repository, {f"{version}{suffix}": manifest for suffix, manifest in manifests.items()}, fixed=True)
        _tag(repository, {f"{upstream}{suffix}": manifest for suffix, manifest in manifests.items()}, fixed=False)
    except FileNotFoundError as error:
        print(f"publish: there is no {error.filename} command here", file=sys.stderr)
        return 1
    except Refused as error:
        print(f"publish: {error}", file=sys.stderr)
        return 1
    return 0


def _clean_tag(version: str) -> str:
    """The commit that is checked out. Raises Refused where the tree is not that of the tag `version`."""
    if _git("status", "--porcelain"):
        raise Refused("the tree is not clean: what is published must be what the tag holds")
    if version not in _git("tag", "--points-at", "HEAD").splitlines():
        raise Refused(f"this commit does not have the tag {version}, which VERSION says it is")
    return _git("rev-parse", "HEAD")


def _git(*words: str) -> str:
    ended = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise Refused(" ".join(ended.stderr.split()))
    return ended.stdout.strip()


def _given(images: list[str], bases: list[Base]) -> dict[str, str]:
    digests = dict(image.partition("=")[::2] for image in images)
    for target, digest in digests.items():
        if target not in {base.target for base in bases} or not digest.startswith("sha256:"):
            raise Refused(f"--image {target}={digest} is not TARGET=sha256:… with a target of docker-bake.hcl")
    return digests


def _pushed(base: Base, repository: Repository, tag: str, commit: str) -> str | None:
    """The digest of this machine's image where the registry has it under its fixed tag already. Raises Refused where
    there is no image, where it is not of this commit, or where the tag is another's."""
    command = ["docker", "image", "inspect", names(base)[0]]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        made = f"python -m scripts.build --variant {base.variant} --platform {base.platform}"
        raise Refused(f"there is no image {names(base)[0]}: {made}")
    about = json.loads(ended.stdout)[0]
    revision = (about["Config"]["Labels"] or {}).get("org.opencontainers.image.revision")
    if revision != commit:
        raise Refused(f"{names(base)[0]} was built of commit {revision} and not of this one, {commit}")
    try:
        digest = repository.manifest(tag).digest
    except NotFound:
        return None
    if digest not in [name.partition("@")[2] for name in about["RepoDigests"]]:
        raise _taken(tag, digest)
    return digest


def _taken(tag: str, digest: str) -> Refused:
    return Refused(f"{tag} is published with other content, {digest}: raise the revision in VERSION")


def _push(base: Base, repository: Repository, tag: str) -> str:
    """Pushes this machine's image; returns its digest."""
    for command in (["tag", names(base)[0], f"{repository}:{tag}"], ["push", f"{repository}:{tag}"]):
        if subprocess.run(["docker", *command], stdout=sys.stderr, check=False).returncode:
            raise Refused(f"docker {' '.join(command)} failed, see above")
    return repository.manifest(tag).digest


def _manifests(bases: list[Base], repository: Repository, digests: Mapping[str, str]) -> dict[str, Manifest]:
    """What each tag names, by the end of the tag: the image, or the index of a variant's images."""
    named: dict[str, Manifest] = {}
    for _, group in groupby(bases, key=lambda base: base.variant):
        entries: list[dict[str, Any]] = []
        for base in (images := list(group)):
            manifest = named[base.suffix] = repository.manifest(digests[base.target])
            platforms = repository.platforms(manifest)
            if base.platform not in platforms:
                raise Refused(f"the image of {base.target} is for {', '.join(platforms)} and not for {base.platform}")
            # an image that has attestations is an index with them: all its entries, since an index holds no indexes
            entries += manifest.content["manifests"] if manifest.is_index else platforms.values()
        if len(images) > 1:
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
            named[images[0].suffix] = Manifest(INDEX, json.dumps(index, indent=2).encode())
    return named


def _tag(repository: Repository, tags: Mapping[str, Manifest], *, fixed: bool) -> None:
    """Gives the tags, and prints them. fixed: such as are not to be changed; raises Refused before any is."""
    there: dict[str, str] = {}
    for tag, manifest in tags.items():
        try:
            there[tag] = repository.manifest(tag).digest
        except NotFound:
            continue
        if fixed and there[tag] != manifest.digest:
            raise _taken(tag, there[tag])
    for tag, manifest in tags.items():
        if there.get(tag) != manifest.digest:
            repository.put_manifest(tag, manifest)
        print(f"{tag} -> {manifest.digest}")


if __name__ == "__main__":
    sys.exit(main())
