# SPDX-License-Identifier: AGPL-3.0-only
"""The base images that patches/upstream.toml records, and our images that are built on them."""

import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "patches" / "upstream.toml"
READ = ROOT / "patches" / "upstream.json"
"""What bump read of the recorded release: hashes of its sources, configuration, libraries, changes."""
VERSION = ROOT / "VERSION"
IMAGE = os.environ.get("IMAGE") or "docker.io/devfox101/mt-photos-ml"
"""The repository of our images."""

_HEADER = """\
# The base images, by variant and platform. scripts/bump.py writes this file; no other file has their digests. A
# platform without a digest can be built locally, by its tag, but not published: `make bump` finds the digest.
"""


class Refused(RuntimeError):
    """A command can't do what it was asked to; the message says why in one line."""


def warn(text: str) -> None:
    """Prints a warning on stderr, in a workflow in the form that GitHub shows with the run."""
    print(f"{'::warning::' if os.environ.get('GITHUB_ACTIONS') else 'warning: '}{text}", file=sys.stderr)


@dataclass(frozen=True)
class Variant:
    """A variant of upstream's image. suffix: of the tag. digests: by platform, if known. version: if upstream did
    not publish the variant with this release, the one that it stays at."""

    name: str
    suffix: str
    platforms: tuple[str, ...]
    digests: Mapping[str, str]
    version: str | None = None


@dataclass(frozen=True)
class Base:
    """An image of upstream and the target of docker-bake.hcl that is built on it. suffix: of our tags."""

    target: str
    variant: str
    platform: str
    suffix: str
    reference: str

    @property
    def digest(self) -> str:
        """The base's digest; empty if it is not known."""
        return self.reference.partition("@")[2]

    @property
    def unknown_digest(self) -> str:
        """The message if the digest is not known."""
        version = self.reference.rpartition(":")[2].partition("-")[0]
        return (
            f"the digest of {self.reference} is not known, so its image can't be published: "
            f"run `make bump UPSTREAM={version}` on a machine that reaches the registry"
        )


@dataclass(frozen=True)
class Upstream:
    """A release of upstream. unused: suffixes of its tags for which we have no variant."""

    repository: str
    version: str
    variants: tuple[Variant, ...]
    unused: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path = RECORD) -> "Upstream":
        record = tomllib.loads(path.read_text())
        variants = tuple(
            Variant(name, v["suffix"], tuple(v["platforms"]), v.get("digests", {}), v.get("version"))
            for name, v in record["variants"].items()
        )
        return cls(record["repository"], record["version"], variants, tuple(record.get("unused", ())))

    def text(self) -> str:
        """The content of patches/upstream.toml."""
        lines = [f'{_HEADER}repository = "{self.repository}"', f'version = "{self.version}"']
        if self.unused:
            lines.append(f"unused = {json.dumps(self.unused)} # suffixes of upstream's tags on which we build nothing")
        for variant in self.variants:
            platforms = ", ".join(f'"{platform}"' for platform in variant.platforms)
            lines += ["", f"[variants.{variant.name}]", f'suffix = "{variant.suffix}"', f"platforms = [{platforms}]"]
            lines += [f'version = "{variant.version}"'] if variant.version else []
            lines += [f'digests."{platform}" = "{digest}"' for platform, digest in variant.digests.items()]
        return "\n".join(lines) + "\n"

    @property
    def bases(self) -> list[Base]:
        """All images that we build: those of the variants in this release. If a variant has several platforms, arm64
        has the suffix -arm and amd64 none."""
        current = [variant for variant in self.variants if variant.version is None]
        return [self._base(variant, platform) for variant in current for platform in variant.platforms]

    def publishable(self) -> list[Base]:
        """All images that can be published: those of variants whose digests are known. Warns of the others."""
        unknown = {base.variant: base for base in self.bases if not base.digest}
        for base in unknown.values():
            warn(f"{base.variant} is left out: {base.unknown_digest}")
        return [base for base in self.bases if base.variant not in unknown]

    @property
    def every(self) -> list[Base]:
        """The images of all variants, including those not in this release."""
        return [self._base(variant, platform) for variant in self.variants for platform in variant.platforms]

    @property
    def suffixes(self) -> dict[str, list[str]]:
        """The suffixes of our tags by variant, the plain one first; includes variants not in this release."""
        return {v.name: [base.suffix for base in self.every if base.variant == v.name] for v in self.variants}

    def _base(self, variant: Variant, platform: str) -> Base:
        digest = variant.digests.get(platform)
        reference = f"{self.repository}:{self.version}{variant.suffix}" + (f"@{digest}" if digest else "")
        if len(variant.platforms) == 1:
            return Base(variant.name, variant.name, platform, variant.suffix, reference)
        machine = platform.removeprefix("linux/")
        suffix = variant.suffix + ("-arm" if machine == "arm64" else "")
        return Base(f"{variant.name}-{machine}", variant.name, platform, suffix, reference)

    def base(self, variant: str, platform: str | None = None) -> Base:
        """The base of this variant and platform (default: its first). Raises Refused."""
        for base in self.bases:
            if base.variant == variant and platform in (None, base.platform):
                return base
        for other in self.variants:
            if other.name == variant and other.version:
                raise Refused(f"{variant} is still at {other.version}: upstream did not publish it with {self.version}")
        known = ", ".join(f"{base.variant} {base.platform}" for base in self.bases)
        raise Refused(f"there is no variant {variant}{f' for {platform}' if platform else ''}; there are {known}")


def our_version(path: Path = VERSION) -> tuple[str, str]:
    """VERSION, and the upstream version in it: ("v2.5.6-r1", "v2.5.6"). Raises Refused."""
    version = path.read_text().strip()
    if not (form := re.fullmatch(r"(v\d+\.\d+\.\d+)-r\d+", version)):
        raise Refused(f"VERSION contains {version!r}, not vX.Y.Z-rN")
    return version, form[1]
