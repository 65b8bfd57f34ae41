# SPDX-License-Identifier: AGPL-3.0-only
"""MT Photos recognition: text, search by words and faces, over HTTP."""

import os
from importlib import metadata
from pathlib import Path

from .machine.cpu import require_processor

require_processor()

# From 1.29 on onnxruntime tells its maker which models are opened and run, unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def version() -> str:
    """What the file VERSION says, which lies beside the package in the image and at the root of a checkout."""
    here = Path(__file__).parent
    for path in (here / "VERSION", here.parents[1] / "VERSION"):
        if path.is_file():
            return path.read_text().strip()
    return metadata.version("mt-photos-ml")
