# SPDX-License-Identifier: AGPL-3.0-only
"""The log: ours to standard error, and that of others only where nobody else writes it."""

import subprocess
import sys

PROGRAM = """
import logging
from mt_photos_ml.logs import to_stderr

silent, spoken = logging.getLogger("silent"), logging.getLogger("spoken")
spoken.addHandler(logging.NullHandler())
silent.setLevel("INFO")
spoken.setLevel("INFO")
to_stderr("info", silent, spoken)
for name in ("mt_photos_ml", "silent", "spoken"):
    logging.getLogger(name).info("said by %s", name)
logging.getLogger("mt_photos_ml").debug("too quiet")
"""


def test_ours_is_written_and_others_only_where_they_have_no_handler() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30)
    assert [line.partition("INFO ")[2] for line in ended.stderr.splitlines()] == [
        "said by mt_photos_ml",
        "said by silent",
    ]
