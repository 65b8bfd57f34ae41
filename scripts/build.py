# SPDX-License-Identifier: AGPL-3.0-only
"""Builds the image of a variant with Docker's buildx, as docker-bake.hcl says. Prints its name."""

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
    parser.add_argument("--base", help="another base image than the one of patches/upstream.toml")
    parser.add_argument("--tag", help=f"the name of the image (default: {IMAGE} with the tags of docker-bake.hcl)")
    parser.add_argument("--push", action="store_true", help="push it under the tag that `publish` takes it from")
    parser.add_argument(
        "--push-by-digest", action="store_true", help="push it without a tag; not with Docker's own driver"
    )
    parser.add_argument(
        "--sbom", action="store_true", help="with a list of what is in it, which needs a scanner's image"
    )
    parser.add_argument("--matrix", action="store_true", help="build nothing; print every image of a release as JSON")
    options = parser.parse_args()
    try:
        upstream = Upstream.load()
        if options.matrix:
            print(json.dumps(matrix(upstream)))
            return 0
        base = upstream.base(options.variant, options.platform)
        pushes = options.push or options.push_by_digest
        if pushes and not (options.base or base.digest):
            raise Refused(unknown_digest(base))
        print(
            _baked(
                base, options.base or base.reference, options.tag, options.push, options.push_by_digest, options.sbom
            )
        )
    except Refused as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


def matrix(upstream: Upstream) -> list[dict[str, str]]:
    """Every image of a release. Raises Refused where a digest is not known, before anything is built."""
    for base in upstream.bases:
        if not base.digest:
            raise Refused(unknown_digest(base))
    return [{"target": base.target, "variant": base.variant, "platform": base.platform} for base in upstream.bases]


def unknown_digest(base: Base) -> str:
    version = base.reference.rpartition(":")[2].removesuffix(base.suffix)
    return (
        f"the digest of {base.reference} is not known, so nobody could tell what was published: "
        f"`make bump UPSTREAM={version}` on a machine that reaches the registry finds it"
    )


def names(base: Base) -> list[str]:
    """What the image of this base is called: the fixed name, then the one that moves."""
    version, upstream = our_version()
    return [f"{IMAGE}:{version}{base.suffix}", f"{IMAGE}:{upstream}{base.suffix}"]


def pushed_name(base: Base) -> str:
    """The tag that an image is pushed under: its fixed one, but for the one whose name is that of several platforms."""
    return names(base)[0] + ("" if base.suffix else f"-{base.platform.partition('/')[2]}")


def commit() -> str:
    """The commit of the tree; COMMIT-dirty where the tree has what the commit has not."""
    head, changes = (
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
    )
    return f"{head}-dirty" if changes else head


def _baked(base: Base, reference: str, tag: str | None, push: bool, by_digest: bool, sbom: bool) -> str:
    docker("buildx", "version")  # raises in words where there is none
    version, upstream = our_version()
    variables = {"IMAGE": IMAGE, "VERSION": version, "UPSTREAM": upstream, "REVISION": commit()}
    command = ["docker", "buildx", "bake", "--file=docker-bake.hcl"]
    command += [f"--set={base.target}.args.BASE_DIGEST={reference.partition('@')[2]}"]
    if push or by_digest:
        command += ["--provenance=mode=max", *(["--sbom=true"] if sbom else [])]
    if push:
        name = tag or pushed_name(base)
        if digest(name):
            raise Refused(f"{name} is published already: raise the revision in VERSION")
        _bake(base, [*command, "--push", f"--set={base.target}.tags={name}"], variables, reference)
        return name
    if by_digest:
        name = tag or IMAGE
        output = f"type=image,name={name},push-by-digest=true,name-canonical=true,push=true"
        command += [f"--set={base.target}.tags={name}", f"--set={base.target}.output={output}"]
        return f"{name}@{_bake(base, command, variables, reference)}"
    command += ["--load", "--provenance=false", *([f"--set={base.target}.tags={tag}"] if tag else [])]
    _bake(base, command, variables, reference)
    return tag or names(base)[0]


def _bake(base: Base, command: list[str], variables: dict[str, str], reference: str) -> str:
    """Builds; returns the digest. All that Docker says goes to stderr: on stdout there is the name only."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "metadata.json"
        given = {**os.environ, **variables, base.variable: reference}
        try:
            whole = [*command, f"--metadata-file={told}", base.target]
            ended = subprocess.run(whole, cwd=ROOT, env=given, stdout=sys.stderr, check=False)
        except FileNotFoundError:
            raise Refused("there is no docker command here") from None
        if ended.returncode:
            raise Refused("docker buildx bake failed, see above")
        return str(json.loads(told.read_text())[base.target].get("containerimage.digest", ""))


if __name__ == "__main__":
    sys.exit(main())
