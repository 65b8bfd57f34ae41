# SPDX-License-Identifier: AGPL-3.0-only
"""Replaces upstream's main.py, which lies beside it as upstream_main: the MT Photos API, and behind it upstream's."""

import signal
import sys

from mt_photos_ml.api.middleware.lifecycle import Lifecycle
from mt_photos_ml.api.upstream import Upstream
from mt_photos_ml.app import create_app
from mt_photos_ml.machine.memory import configure_malloc
from mt_photos_ml.server.announce import announce
from mt_photos_ml.server.logs import to_stderr
from mt_photos_ml.settings import SettingsError, load

try:
    settings = load()
    to_stderr(settings.log_level, settings.log_format)
    configure_malloc()
    upstream = Upstream(at_once=settings.immich_api == "open") if settings.immich_api != "off" else None
    lifecycle = Lifecycle(restarts_on={signal.SIGINT})  # which upstream sends its own process when it is idle
    app = create_app(settings, lifecycle, upstream)
    announce(
        settings, "the port of the container", "http://ADDRESS-OF-THIS-MACHINE:8060 (the port that it is published at)"
    )
except SettingsError as error:
    print(f"mt-photos-ml: {error}", file=sys.stderr)
    sys.exit(4)  # gunicorn's own code for an app that can't be loaded: it does not try again
