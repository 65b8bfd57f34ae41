# SPDX-License-Identifier: AGPL-3.0-only
"""Replaces upstream's main.py, which lies beside it as upstream_main: the MT Photos API, and behind it upstream's."""

import os
import signal
import sys

from mt_photos_ml.app import announce, from_settings
from mt_photos_ml.logs import to_stderr
from mt_photos_ml.memory import configure_malloc
from mt_photos_ml.settings import SettingsError, load
from mt_photos_ml.upstream import Upstream

try:
    settings = load()
    to_stderr(settings.log_level)
    configure_malloc()
    app = from_settings(
        settings,
        Upstream(at_once=settings.immich_api == "open") if settings.immich_api != "off" else None,
        restart=lambda: os.kill(os.getpid(), signal.SIGTERM),  # gunicorn starts another worker
    )
    announce(settings, "the port of the container")
except SettingsError as error:
    print(f"mt-photos-ml: {error}", file=sys.stderr)
    sys.exit(4)  # gunicorn's own code for an app that can't be loaded: it does not try again
