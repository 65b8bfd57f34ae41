# SPDX-License-Identifier: AGPL-3.0-only
"""Recognition for MT Photos over HTTP: text, search by words, and faces."""

from importlib import metadata
from pathlib import Path


def version() -> str:
    """The version: in the image and in a checkout the content of the file VERSION, otherwise what pip installed."""
    here = Path(__file__).parent
    for path in (here / "VERSION", here.parents[1] / "VERSION"):
        if path.is_file():
            return path.read_text().strip()
    return metadata.version("mt-photos-ml")
