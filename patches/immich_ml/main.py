# SPDX-License-Identifier: AGPL-3.0-only
"""Replaces upstream's main.py, which lies beside it as upstream_main: its app with the MT Photos API added."""

import os
import signal
import sys
from contextlib import contextmanager

from mt_photos_ml.app import extend, threads_an_inference
from mt_photos_ml.logs import to_stderr
from mt_photos_ml.memory import keep
from mt_photos_ml.models.hub import Hub
from mt_photos_ml.runtime.immich import ImmichRuntime, ImmichSource, UpstreamChanged, check, upstream
from mt_photos_ml.runtime.prepared import Prepared
from mt_photos_ml.settings import SettingsError, load

try:
    check()
    app = upstream("immich_ml.upstream_main", "app")
    settings = load()
    to_stderr(settings.log_level, upstream("immich_ml.config", "log"))
    keep()
    threads = threads_an_inference(settings)
    prepared = Prepared(settings.cache_folder) if settings.prepare_models else None
    runtime = ImmichRuntime(settings.cache_folder, threads, prepared)
    extend(
        app,
        settings,
        runtime,
        ImmichSource(settings.cache_folder, Hub(settings.cache_folder, settings.hf_endpoint)),
        activity=contextmanager(upstream("immich_ml.upstream_main", "update_state")),
        # as upstream ends its worker when it is idle; gunicorn starts another
        start_afresh=lambda: os.kill(os.getpid(), signal.SIGINT),
        started=runtime.started,
        release=runtime.release,
    )
except (SettingsError, UpstreamChanged) as error:
    print(f"mt-photos-ml: {error}", file=sys.stderr)
    sys.exit(4)  # gunicorn's own code for an app that can't be loaded: it does not try again
