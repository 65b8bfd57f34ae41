# SPDX-License-Identifier: AGPL-3.0-only
"""Copies published images to another registry, under the same tags and digests. Reads the output of `publish` on
stdin. Run `docker login` for the registry first. If a tag can't be copied, prints why, copies the others and ends
with 1."""

import argparse
import sys
from dataclasses import dataclass

from .docker import digest, docker
from .publish import FORM
from .upstream import IMAGE, Refused, Upstream


@dataclass(frozen=True)
class Mirror:
    """A registry besides Docker Hub. without: variants that are not copied."""

    repository: str
    without: tuple[str, ...] = ()


MIRRORS = {
    "ghcr": Mirror("ghcr.io/dev-fox-101/mt-photos-ml"),
    "acr": Mirror("registry.cn-hangzhou.aliyuncs.com/devfox101/mt-photos-ml", without=("rocm",)),
}
"""GitHub's, and Aliyun's, for mainland China; the ROCm image, 30 GB, is too large for Aliyun's."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.mirror", description=__doc__)
    parser.add_argument("mirror", choices=MIRRORS)
    parser.add_argument("--to", metavar="REPOSITORY", help="copy to this one instead of the mirror's own")
    options = parser.parse_args()
    mirror, failures = MIRRORS[options.mirror], 0
    suffixes = Upstream.load().suffixes
    left_out = tuple(suffix for variant in mirror.without for suffix in suffixes[variant])
    for line in sys.stdin:
        tag, _, there = line.strip().partition(" -> ")
        if not tag.endswith(left_out or ("\n",)):
            try:
                _copy(tag, there, options.to or mirror.repository)
            except Refused as error:
                failures += 1
                print(f"mirror: {tag}: {error}", file=sys.stderr)
    return int(failures > 0)


def _copy(tag: str, wanted: str, repository: str) -> None:
    """Copies one tag. Raises Refused if it is a fixed tag and has other content there."""
    target = f"{repository}:{tag}"
    there = digest(target)
    if there and there != wanted and FORM.match(tag):
        raise Refused(f"{target} has other content, {there}")
    if there != wanted:
        docker("buildx", "imagetools", "create", "--tag", target, f"{IMAGE}@{wanted}")
        if (there := digest(target)) != wanted:
            raise Refused(f"{target} is {there} after the copy, not {wanted}")
    print(f"{target} -> {there}")


if __name__ == "__main__":
    sys.exit(main())
