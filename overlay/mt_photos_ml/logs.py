# SPDX-License-Identifier: AGPL-3.0-only
"""Where the log goes: one line an event, to standard error."""

import logging


def to_stderr(level: str) -> None:
    """Our events from this level on, and what others, such as upstream's app, have to say."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("mt_photos_ml").setLevel(level.upper())
    for name in ("PIL", "python_multipart"):  # what is wrong with a photo or a form is in the request's own line
        logging.getLogger(name).setLevel(logging.CRITICAL)
