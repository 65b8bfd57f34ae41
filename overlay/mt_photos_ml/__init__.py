# SPDX-License-Identifier: AGPL-3.0-only
"""MT Photos recognition: text, search by words and faces, over HTTP."""

from importlib import metadata
from pathlib import Path


def version() -> str:
    """What the file VERSION says, which lies beside the package in the image and at the root of a checkout."""
    here = Path(__file__).parent
    for path in (here / "VERSION", here.parents[1] / "VERSION"):
        if path.is_file():
            return path.read_text().strip()
    return metadata.version("mt-photos-ml")
