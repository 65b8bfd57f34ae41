# SPDX-License-Identifier: AGPL-3.0-only
"""gunicorn's configuration, in the image and on a bare machine. Upstream's variables have the same meaning here."""

import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING

from . import startup

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter


# compose may pass unset variables as empty ones, which upstream takes for values; an empty key is an error in load()
for _name in [name for name, value in os.environ.items() if not value and name != "API_AUTH_KEY"]:
    del os.environ[_name]

startup.check_machine()
_settings = startup.settings_or_exit()

if _settings.device == "openvino":  # for Intel's i915, as in upstream's own start command
    os.environ.setdefault("NEOReadDebugKeys", "1")
    os.environ.setdefault("EnableDirectSubmission", "0")

from .worker import Log, Worker  # noqa: E402

MAPPING_GONE = "a mapped model file disappeared (a network share?): from now on models are read into memory"

KILLED = (
    "a worker was killed and is started again. Probably no memory was left: give the container or the machine more, or "
    "lower MACHINE_LEARNING_REQUEST_THREADS"
)

_log = logging.getLogger("mt_photos_ml")
_pause = 0.0  # seconds before the next worker starts


def pre_fork(server: "Arbiter", worker: Worker) -> None:
    """Assigns each worker the card of MACHINE_LEARNING_DEVICE_IDS that the fewest workers have."""
    worker.pause = _pause
    if _settings.device_ids:
        dealt = [getattr(other, "device_id", "") for other in server.WORKERS.values()]
        worker.device_id = min(_settings.device_ids.replace(" ", "").split(","), key=dealt.count)
        os.environ["MACHINE_LEARNING_DEVICE_ID"] = worker.device_id


def when_ready(server: "Arbiter") -> None:
    """Ends the service at Ctrl-C or when its terminal closes, as at SIGTERM; a second signal ends it at once."""
    gc.collect()
    gc.freeze()  # otherwise each worker's collector would write to the pages that it shares with this process
    is_stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            server.kill_workers(signal.SIGQUIT)
        else:
            is_stopping = True
            server.signal(signal.SIGTERM, frame)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, stop)


def child_exit(server: "Arbiter", worker: Worker) -> None:
    """Logs where a worker crashed. After a bus error (a model's share disappeared) models are read, not mapped."""
    global _pause
    crash = worker.crash()
    if crash is None:
        _pause = 0.0
        return
    _pause = worker.next_pause()
    _log.error(f"a worker crashed and is started again:\n{crash}" if crash else KILLED)
    if "Bus error" in crash:
        _log.error(MAPPING_GONE)
        os.environ["PREPARE_MODELS"] = "false"


def _listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; for `::` on a host without IPv6 one of IPv4. Ends the process if that fails."""
    host = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        dualstack = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=backlog, dualstack_ipv6=dualstack)
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        if host != "::" or is_taken:
            how = "; stop the program that uses it, or choose another port" if is_taken else ""
            sys.exit(f"mt-photos-ml: can't listen on {host} port {port}: {error.strerror}{how}")
    print("mt-photos-ml: this host has no IPv6, listening on 0.0.0.0", file=sys.stderr)
    return _listen("0.0.0.0", port)


with contextlib.suppress(OSError, ValueError):  # if the hard limit is more than the system allows
    _most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (_most, _most))

backlog = 128  # the event loop accepts that many at once, and tries that often if no file descriptor is left
bind = f"fd://{_listen(_settings.immich_host, _settings.immich_port).detach()}"
wsgi_app = "mt_photos_ml.server.service:app"
workers = _settings.workers
worker_class = Worker
logger_class = Log
loglevel = "warning"
timeout = _settings.worker_timeout
worker_tmp_dir = "/tmp"  # the only place that a read-only container can write to
control_socket_disable = True  # it would be created in the working directory
keepalive = 75  # longer than clients keep a connection for reuse, otherwise their next request meets a closed one
graceful_timeout = 60  # for requests in flight when the service stops or restarts
