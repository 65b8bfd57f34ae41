# SPDX-License-Identifier: AGPL-3.0-only
"""Where the log goes: one line an event, to standard error."""

import logging


def to_stderr(level: str, *others: logging.Logger) -> None:
    """Our events from this level on, and those of other loggers that have no handler of their own."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("mt_photos_ml")
    ours.setLevel(level.upper())
    for logger in (ours, *(other for other in others if not other.handlers)):
        logger.addHandler(handler)
        logger.propagate = False
    for name in ("PIL", "python_multipart"):  # what is wrong with a photo or a form is in the request's own line
        logging.getLogger(name).setLevel(logging.CRITICAL)
