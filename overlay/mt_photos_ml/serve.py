# SPDX-License-Identifier: AGPL-3.0-only
"""The service on a bare machine: uvicorn on a socket that outlives a restart. gunicorn.conf.py is the image's."""

import os
import signal
import socket
import sys

import uvicorn

from .app import announce, from_settings
from .memory import configure_malloc
from .settings import Settings


def serve(settings: Settings, host: str, port: int, fd: int | None) -> int:
    """Serves until a signal, answers what is in flight, and returns the exit code.

    fd: the socket that this process bound before it started itself afresh.
    """
    try:
        listening = socket.socket(fileno=fd) if fd is not None else bind(host, port)
    except OSError as error:
        print(f"mt-photos-ml: can't listen on {host} port {port}: {error.strerror}", file=sys.stderr)
        return 1
    kept = listening.dup()  # uvicorn closes the one it is given; new clients wait at this one during a restart
    restarting = False

    def restart() -> None:
        nonlocal restarting
        restarting = server.should_exit = True

    config = uvicorn.Config(
        from_settings(settings, restart=restart),
        http="h11",  # which refuses endless headers; httptools takes them all
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=120,
    )
    server = uvicorn.Server(config)
    configure_malloc()
    announce(settings, f"http://{f'[{host}]' if ':' in host else host}:{port}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises the signal again when it has finished
    server.run(sockets=[listening])
    if restarting:
        kept.set_inheritable(True)
        where = ["--host", host, "--port", str(port), "--fd", str(kept.fileno())]
        os.execv(sys.executable, [sys.executable, "-m", "mt_photos_ml", "serve", *where])
    return 0


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=2048)
    # for all connections: asyncio does it only where it made the socket, and a reply in two pieces would wait 40 ms
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setblocking(False)
    return listening
