# SPDX-License-Identifier: AGPL-3.0-only
"""Builds the image of a variant: with buildx where Docker has it, else with the classic builder. Prints its name."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .upstream import IMAGE, ROOT, Base, Refused, Upstream, our_version


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.build", description=__doc__)
    parser.add_argument("--variant", default="cpu", help="cpu, cuda, openvino, armnn, rknn or rocm (default: cpu)")
    parser.add_argument("--platform", help="linux/amd64 or linux/arm64 (default: the variant's first)")
    parser.add_argument("--base", help="another base image than the one of patches/upstream.toml")
    parser.add_argument("--tag", help=f"the name of the image (default: {IMAGE} with the tags of docker-bake.hcl)")
    parser.add_argument("--push-by-digest", action="store_true", help="push without a tag; needs buildx")
    options = parser.parse_args()
    try:
        base = Upstream.load().base(options.variant, options.platform)
        reference = options.base or base.reference
        if subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode == 0:
            name = _with_buildx(base, reference, options.tag, options.push_by_digest)
        elif options.push_by_digest:
            raise Refused("--push-by-digest needs buildx, which this Docker does not have")
        else:
            name = _with_classic_builder(base, reference, options.tag)
    except FileNotFoundError as error:
        print(f"build: there is no {error.filename} command here", file=sys.stderr)
        return 1
    except Refused as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    print(name)
    return 0


def names(base: Base) -> list[str]:
    """What the image of this base is called on this machine: the fixed name, then the one that moves."""
    version, upstream = our_version()
    return [f"{IMAGE}:{version}{base.suffix}", f"{IMAGE}:{upstream}{base.suffix}"]


def _with_buildx(base: Base, reference: str, tag: str | None, push_by_digest: bool) -> str:
    version, upstream = our_version()
    variables = {"IMAGE": IMAGE, "VERSION": version, "UPSTREAM": upstream, "REVISION": _revision()}
    command = ["docker", "buildx", "bake", "--file=docker-bake.hcl"]
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "metadata.json"
        if push_by_digest:
            repository = tag or IMAGE
            output = f"type=image,name={repository},push-by-digest=true,name-canonical=true,push=true"
            command += [f"--metadata-file={told}", "--provenance=mode=max", "--sbom=true"]
            command += [f"--set={base.target}.tags={repository}", f"--set={base.target}.output={output}"]
        else:
            command += ["--load", "--provenance=false"]
            command += [f"--set={base.target}.tags={tag}"] if tag else []
        command += [f"--set={base.target}.args.BASE_DIGEST={_digest(reference)}"]
        _run([*command, base.target], {**variables, base.variable: reference})
        if push_by_digest:
            digest = json.loads(told.read_text())[base.target]["containerimage.digest"]
            return f"{tag or IMAGE}@{digest}"
    return tag or names(base)[0]


def _with_classic_builder(base: Base, reference: str, tag: str | None) -> str:
    arguments = {
        "BASE": reference,
        "BASE_DIGEST": _digest(reference),
        "VERSION": our_version()[0],
        "REVISION": _revision(),
    }
    tags = [tag] if tag else names(base)
    command = ["docker", "build", f"--platform={base.platform}"]
    command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    _run([*command, *(f"--tag={name}" for name in tags), "."], {"DOCKER_BUILDKIT": "0"})
    return tags[0]


def _digest(reference: str) -> str:
    """The digest in a reference; nothing where it has none."""
    return reference.partition("@")[2]


def _run(command: list[str], variables: dict[str, str]) -> None:
    """Runs it in the tree, its output on stderr: on stdout there is the name only. Raises Refused."""
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, stdout=sys.stderr, check=False)
    if ended.returncode:
        raise Refused(f"{' '.join(command[:3])} failed, see above")


def _revision() -> str:
    """The commit of the tree; COMMIT-dirty where the tree has what the commit has not."""
    commit, changes = (
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
    )
    return f"{commit}-dirty" if changes else commit


if __name__ == "__main__":
    sys.exit(main())
