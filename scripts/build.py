# SPDX-License-Identifier: AGPL-3.0-only
"""Builds the image of a variant with docker buildx, from docker-bake.hcl. Prints the image's name."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .docker import digest, docker
from .upstream import IMAGE, ROOT, Base, Refused, Upstream, our_version


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.build", description=__doc__)
    parser.add_argument("--variant", default="cpu", help="cpu, cuda, openvino, armnn, rknn or rocm (default: cpu)")
    parser.add_argument("--platform", help="linux/amd64 or linux/arm64 (default: the variant's first)")
    parser.add_argument("--base", help="base image (default: the one in patches/upstream.toml)")
    parser.add_argument("--tag", help=f"the image's name (default: {IMAGE} with the tags of docker-bake.hcl)")
    parser.add_argument("--push", action="store_true", help="push it under the tag that `publish` reads")
    parser.add_argument(
        "--push-by-digest", action="store_true", help="push it without a tag; not with the docker driver"
    )
    parser.add_argument("--sbom", action="store_true", help="attach an SBOM; needs BuildKit's scanner image")
    parser.add_argument("--matrix", action="store_true", help="build nothing; list all images of a release as JSON")
    options = parser.parse_args()
    try:
        upstream = Upstream.load()
        if options.matrix:
            print(json.dumps(matrix(upstream)))
            return 0
        base = upstream.base(options.variant, options.platform)
        if (options.push or options.push_by_digest) and not (options.base or base.digest):
            raise Refused(base.unknown_digest)
        source = upstream.base("cpu", base.platform).reference
        print(_baked(base, source, options))
    except Refused as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


def matrix(upstream: Upstream) -> list[dict[str, str]]:
    """All images of a release whose base digest is known. Raises Refused if there are none."""
    if not (bases := upstream.publishable()):
        raise Refused("patches/upstream.toml has no digest of any base image")
    return [{"target": b.target, "variant": b.variant, "platform": b.platform, "suffix": b.suffix} for b in bases]


def names(base: Base) -> list[str]:
    """The names of the image on this base: with the fixed tag, then with the moving one."""
    version, upstream = our_version()
    return [f"{IMAGE}:{version}{base.suffix}", f"{IMAGE}:{upstream}{base.suffix}"]


def pushed_name(base: Base) -> str:
    """The name to push an image under: with its fixed tag, plus the platform if that tag covers several."""
    return names(base)[0] + ("" if base.suffix else f"-{base.platform.partition('/')[2]}")


def commit() -> str:
    """The commit of the tree, with -dirty if the tree has uncommitted changes."""
    head, changes = (
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
    )
    return f"{head}-dirty" if changes else head


def _baked(base: Base, source: str, options: argparse.Namespace) -> str:
    docker("buildx", "version")  # raises a clear error if there is no buildx
    reference, target = options.base or base.reference, base.target
    name = options.tag or (pushed_name(base) if options.push else IMAGE if options.push_by_digest else names(base)[0])
    settings = [f"args.BASE={reference}", f"args.SOURCE={options.base or source}"]
    settings.append(f"args.BASE_DIGEST={reference.partition('@')[2]}")
    if options.tag or options.push or options.push_by_digest:
        settings.append(f"tags={name}")
    if options.push and digest(name):
        raise Refused(f"{name} is published already: raise the revision in VERSION")
    words = ["--provenance=mode=max", *(["--sbom=true"] if options.sbom else []), *(["--push"] if options.push else [])]
    if options.push_by_digest:
        settings.append(f"output=type=image,name={name},push-by-digest=true,name-canonical=true,push=true")
    elif not options.push:
        words = ["--load", "--provenance=false"]
    built = _bake(target, [*words, *(f"--set={target}.{setting}" for setting in settings)])
    return f"{name}@{built}" if options.push_by_digest else name


def _bake(target: str, words: list[str]) -> str:
    """Builds the target and returns its digest. Docker's output goes to stderr, to keep stdout for the name."""
    version, upstream = our_version()
    variables = {"IMAGE": IMAGE, "VERSION": version, "UPSTREAM": upstream, "REVISION": commit()}
    with tempfile.NamedTemporaryFile("r") as told:
        command = ["docker", "buildx", "bake", "--file=docker-bake.hcl", f"--metadata-file={told.name}", *words, target]
        if subprocess.run(
            command, cwd=ROOT, env={**os.environ, **variables}, stdout=sys.stderr, check=False
        ).returncode:
            raise Refused("docker buildx bake failed, see above")
        return str(json.loads(Path(told.name).read_text())[target].get("containerimage.digest", ""))


if __name__ == "__main__":
    sys.exit(main())
