# SPDX-License-Identifier: AGPL-3.0-only
"""The service on a bare machine: uvicorn on a socket that supervise.py keeps. gunicorn.conf.py is the image's."""

import faulthandler
import signal
import socket
import sys
from ipaddress import ip_address

import uvicorn

from ..api.middleware.lifecycle import Lifecycle, PatientH11Protocol
from ..app import create_app
from ..machine.memory import configure_malloc
from ..settings import Settings
from .announce import announce
from .supervise import RESTART, end_with_parent


def serve(settings: Settings, host: str, listening: socket.socket) -> int:
    """Serves until a signal, answers what is in flight, and returns the exit code."""
    lifecycle, is_exposed = Lifecycle(), not is_loopback(host)
    config = uvicorn.Config(
        create_app(settings, lifecycle, is_exposed=is_exposed),
        http=PatientH11Protocol,  # h11 refuses endless headers; httptools takes them all
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=60,
    )
    faulthandler.enable()  # where it was, in the log, should it crash
    configure_malloc()
    place = f"{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    reached_at = place if host not in ("0.0.0.0", "::") else f"ADDRESS-OF-THIS-MACHINE:{place.rpartition(':')[2]}"
    announce(settings, f"http://{place}", f"http://{reached_at}", is_exposed=is_exposed)
    # uvicorn raises the signal again when it has finished
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(RESTART if lifecycle.is_restarting else 0))
    end_with_parent()
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine can reach it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
