# SPDX-License-Identifier: AGPL-3.0-only
"""How the image runs: gunicorn reads this file of its working directory. Upstream's variables keep their meaning."""

import os

_host = os.environ.get("IMMICH_HOST") or "[::]"
if ":" in _host and not _host.startswith("["):
    _host = f"[{_host}]"

wsgi_app = "immich_ml.main:app"
bind = f"{_host}:{os.environ.get('IMMICH_PORT') or 3003}"
worker_class = "immich_ml.config.CustomUvicornWorker"
workers = int(os.environ.get("MACHINE_LEARNING_WORKERS") or 1)
timeout = int(os.environ.get("MACHINE_LEARNING_WORKER_TIMEOUT") or 300)
worker_tmp_dir = "/tmp"  # the one place that a read-only container can write
control_socket_disable = True  # it would be written into the working directory
keepalive = 75  # longer than clients keep a connection for reuse, else their next request meets a closed one
graceful_timeout = 60  # for requests in flight when the service ends or starts afresh
loglevel = "warning"
