# SPDX-License-Identifier: AGPL-3.0-only
"""Where the log goes: one line an event, to standard error."""

import logging


def to_stderr(level: str) -> None:
    """Our events from this level on. Others' are left alone: in the image upstream writes its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("mt_photos_ml")
    ours.setLevel(level.upper())
    ours.addHandler(handler)
    ours.propagate = False
    for name in ("PIL", "python_multipart"):  # what is wrong with a photo or a form is in the request's own line
        logging.getLogger(name).setLevel(logging.CRITICAL)
