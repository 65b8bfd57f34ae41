# SPDX-License-Identifier: AGPL-3.0-only
"""Starts gunicorn as a child process and, like upstream's, does not pass SIGTERM on to it."""

import os
import subprocess
import sys

options = {
    "--bind": f"{os.environ.get('IMMICH_HOST', '[::]')}:{os.environ.get('IMMICH_PORT', '3003')}",
    "--worker-class": "uvicorn.workers.UvicornWorker",
    "--keep-alive": "2",
}
arguments = [part for option in options.items() for part in option]

sys.exit(subprocess.run([sys.executable, "-m", "gunicorn", "immich_ml.main:app", *arguments]).returncode)
