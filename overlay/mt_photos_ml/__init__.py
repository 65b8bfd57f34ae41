# SPDX-License-Identifier: AGPL-3.0-only
"""Recognition for MT Photos over HTTP: text, search by words, and faces."""

from importlib import metadata
from pathlib import Path


def version() -> str:
    """The content of the file VERSION: in the package in the image, at the root of a checkout; else pip's version."""
    here = Path(__file__).parent
    for path in (here / "VERSION", here.parents[1] / "VERSION"):
        if path.is_file():
            return path.read_text().strip()
    return metadata.version("mt-photos-ml")
