# SPDX-License-Identifier: AGPL-3.0-only
"""Where the log goes: one line an event, to standard error."""

import logging


def to_stderr(level: str) -> None:
    """Ours from this level on, everybody else's warnings."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("mt_photos_ml").setLevel(level.upper())
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is wrong with a photo is in its own line
