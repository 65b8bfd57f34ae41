# SPDX-License-Identifier: AGPL-3.0-only
"""How the image runs: gunicorn reads this file of its working directory. Upstream's variables keep their meaning."""

import os
import sys

from mt_photos_ml.runtime.immich import UpstreamChanged, upstream

try:
    _Upstreams = upstream("immich_ml.config", "CustomUvicornWorker")
except UpstreamChanged as error:
    sys.exit(f"mt-photos-ml: {error}")


class Worker(_Upstreams):  # type: ignore[misc, valid-type]
    """Upstream's, with the parser of HTTP that refuses endless headers; the other takes them all."""

    CONFIG_KWARGS = {**_Upstreams.CONFIG_KWARGS, "http": "h11", "ws": "none"}  # noqa: RUF012


_host = os.environ.get("IMMICH_HOST") or "[::]"
if ":" in _host and not _host.startswith("["):
    _host = f"[{_host}]"

wsgi_app = "immich_ml.main:app"
bind = f"{_host}:{os.environ.get('IMMICH_PORT') or 3003}"
worker_class = Worker
workers = int(os.environ.get("MACHINE_LEARNING_WORKERS") or 1)
timeout = int(os.environ.get("MACHINE_LEARNING_WORKER_TIMEOUT") or 300)
worker_tmp_dir = "/tmp"  # the one place that a read-only container can write
control_socket_disable = True  # it would be written into the working directory
keepalive = 75  # longer than clients keep a connection for reuse, else their next request meets a closed one
graceful_timeout = 60  # for requests in flight when the service ends or starts afresh
loglevel = "warning"
