# SPDX-License-Identifier: AGPL-3.0-only
"""Updates the image tags in the docs and adds a section to the changelog, for a bump."""

import re

from .upstream import ROOT, Upstream

PAGES = (
    *("README.md", "README.zh-CN.md", "compose.yaml", "deploy/unraid/mt-photos-ml.xml"),
    *("docs/nas.md", "docs/nas.zh-CN.md"),
)
"""Files with image tags, in backticks or after the image's name."""
CHANGELOG = "CHANGELOG.md"


def rename(old: Upstream, new: Upstream) -> None:
    """Replaces the old release's tags by the new one's. A variant that is not in the release keeps its tag."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        for was, now in zip(old.variants, new.variants, strict=True):
            first, then = was.version or old.version, now.version or new.version
            ends = "|".join(map(re.escape, old.suffixes[was.name]))
            text = re.sub(rf"(?<=[`:]){re.escape(first)}(?=({ends})(?![\w.-]))", then, text)
            if was is old.variants[0] and first != then:  # the example of a fixed tag
                text = re.sub(rf"(?<=[`:]){re.escape(first)}-r\d+(?![\w.-])", f"{then}-r1", text)
        (ROOT / page).write_text(text)


def begin_section(version: str, text: str) -> None:
    """Adds a section for our version to the changelog if it has none."""
    changelog = ROOT / CHANGELOG
    head, mark, rest = (before := changelog.read_text()).partition("\n## ")
    if f"\n## {version} " not in before:
        changelog.write_text(f"{head}\n## {version} - not released\n\n### Changed\n\n- {text}\n{mark}{rest}")
