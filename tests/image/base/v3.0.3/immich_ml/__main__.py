# SPDX-License-Identifier: AGPL-3.0-only
"""A stand-in with upstream's public names: gunicorn as a child that is told of no SIGTERM, as upstream has it."""

import signal
import subprocess
import sys
from pathlib import Path

from .config import non_prefixed_settings, settings

options = {
    "--bind": f"{non_prefixed_settings.immich_host}:{non_prefixed_settings.immich_port}",
    "--worker-class": "immich_ml.config.CustomUvicornWorker",
    "--workers": str(settings.workers),
    "--timeout": str(settings.worker_timeout),
    "--keep-alive": str(settings.http_keepalive_timeout_s),
    "--graceful-timeout": "10",
    "--config": str(Path(__file__).with_name("gunicorn_conf.py")),
    "--log-config-json": str(Path(__file__).with_name("log_conf.json")),
}
arguments = [*(part for option in options.items() for part in option), "--no-control-socket"]

with subprocess.Popen([sys.executable, "-m", "gunicorn", "immich_ml.main:app", *arguments]) as child:
    try:
        child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
sys.exit(child.returncode)
