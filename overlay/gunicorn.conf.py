# SPDX-License-Identifier: AGPL-3.0-only
"""How the image runs: gunicorn reads this file of its working directory. Upstream's variables keep their meaning."""

import faulthandler
import os
import signal
import socket
import sys
import warnings
from typing import Any

from mt_photos_ml.api.middleware.lifecycle import PatientH11Protocol
from mt_photos_ml.models.checks import check_models
from mt_photos_ml.server.supervise import MAPPING_GONE
from mt_photos_ml.settings import SettingsError, load

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the package that takes its place is not in the base
    from uvicorn.workers import UvicornWorker

# compose may pass what is not set as empty, which upstream takes for a value; an empty key is a mistake, and said to be
for _name in [name for name, value in os.environ.items() if not value and name != "API_AUTH_KEY"]:
    del os.environ[_name]

try:
    _settings = load()
    check_models(_settings, preloads_others=_settings.immich_api != "off")
except SettingsError as error:
    sys.exit("mt-photos-ml: " + str(error).replace("\n", "\nmt-photos-ml: "))


_crash = os.memfd_create("crash")  # inherited by every worker


class Worker(UvicornWorker):
    """Uvicorn in gunicorn, with the parser of HTTP that refuses endless headers; the other takes them all."""

    CONFIG_KWARGS = {  # noqa: RUF012
        "loop": "auto",
        "http": PatientH11Protocol,
        "ws": "none",
        "server_header": False,
        "timeout_graceful_shutdown": 60,
    }

    def init_process(self) -> None:
        """In the new process: should it crash, where it was goes into the file that child_exit reads."""
        faulthandler.enable(_crash)
        super().init_process()

    def init_signals(self) -> None:
        """Uvicorn raises a signal again when it has finished: the end that was asked for is no failure."""
        super().init_signals()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: sys.exit(0))


def pre_fork(server: Any, worker: Any) -> None:
    """Deals the cards of MACHINE_LEARNING_DEVICE_IDS out to the workers, the one that fewest have to each."""
    if _settings.device_ids:
        dealt = [other.device_id for other in server.WORKERS.values()]
        worker.device_id = min(_settings.device_ids.replace(" ", "").split(","), key=dealt.count)
        os.environ["MACHINE_LEARNING_DEVICE_ID"] = worker.device_id


def child_exit(server: Any, worker: Any) -> None:
    """Tells in the log where a worker crashed. One whose mapped model went away is not to be mapped again."""
    said = os.pread(_crash, 1 << 16, 0).decode(errors="replace")
    os.truncate(_crash, 0)
    os.lseek(_crash, 0, os.SEEK_SET)
    if said:
        print(said, file=sys.stderr)
    if "Bus error" in said:
        print(f"mt-photos-ml: {MAPPING_GONE}", file=sys.stderr)
        os.environ["PREPARE_MODELS"] = "false"


def _address(host: str, port: int) -> str:
    """Where to listen: with IPv6 too, but on hosts that have none, where all of it would fail."""
    host = host.strip("[]")
    if host == "::":
        try:
            socket.create_server((host, 0), family=socket.AF_INET6).close()
        except OSError:
            print("mt-photos-ml: this host has no IPv6, listening on 0.0.0.0", file=sys.stderr)
            host = "0.0.0.0"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


wsgi_app = "immich_ml.main:app"
bind = _address(_settings.immich_host, _settings.immich_port)
workers = _settings.workers
timeout = _settings.worker_timeout
worker_class = Worker
worker_tmp_dir = "/tmp"  # the one place that a read-only container can write
control_socket_disable = True  # it would be written into the working directory
keepalive = 75  # longer than clients keep a connection for reuse, else their next request meets a closed one
graceful_timeout = 60  # for requests in flight when the service ends or starts afresh
loglevel = "warning"
