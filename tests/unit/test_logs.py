# SPDX-License-Identifier: AGPL-3.0-only
"""The log: ours and that of others, each line once, to standard error."""

import subprocess
import sys

PROGRAM = """
import logging
from mt_photos_ml.logs import to_stderr

upstream = logging.getLogger("ml.log")
upstream.setLevel("INFO")
to_stderr("info")
for name in ("mt_photos_ml", "mt_photos_ml.access", "ml.log"):
    logging.getLogger(name).info("said by %s", name)
logging.getLogger("another.library").info("too quiet")
logging.getLogger("mt_photos_ml").debug("too quiet")
"""


def test_ours_and_upstreams_are_written_once_and_libraries_only_where_they_warn() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30)
    assert [line.partition("INFO ")[2] for line in ended.stderr.splitlines()] == [
        "said by mt_photos_ml",
        "said by mt_photos_ml.access",
        "said by ml.log",
    ]
