# SPDX-License-Identifier: AGPL-3.0-only
"""Keeps the service running on a bare machine: holds its socket, and starts it again when it wants that or was killed.

Imports next to nothing, since it stays for as long as the service does.
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from types import FrameType

log = logging.getLogger("mt_photos_ml")

RESTART = 75
"""The exit code of a service that wants to be started afresh (EX_TEMPFAIL of sysexits.h)."""

MAPPING_GONE = "a mapped model file went away, as on a network share: models are read into memory from now on"

_SHORT_LIFE = 10.0  # seconds; one that is killed sooner is started again only after a pause
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 60.0  # seconds
_LONGEST_END = 120  # seconds that it is given to end
_PR_SET_PDEATHSIG = 1  # prctl(2)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=2048)
    # for all connections: asyncio does it only where it made the socket, and a reply in two pieces would wait 40 ms
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setblocking(False)
    return listening


def supervise(command: Sequence[str], listening: socket.socket) -> int:
    """Runs the command, which is given `--fd N`, until it is asked to end; returns its exit code."""
    environment, stopping = dict(os.environ), threading.Event()
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        signal.alarm(_LONGEST_END)
        if child is not None:
            child.send_signal(number)

    def kill(number: int, frame: FrameType | None) -> None:
        if child is not None:
            child.kill()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGALRM, kill)
    pause = _FIRST_PAUSE
    while True:
        began = time.monotonic()
        child = subprocess.Popen(  # noqa: S603
            [*command, "--fd", str(listening.fileno())],
            env=environment,
            pass_fds=[listening.fileno()],
            process_group=0,  # of its own, or Ctrl-C would reach it twice
        )
        if stopping.is_set():  # while it was being started
            child.terminate()
        status = child.wait()
        if stopping.is_set() or (status >= 0 and status != RESTART):
            return status if status >= 0 else 128 - status
        if status == RESTART:
            continue
        log.error("the service was ended by %s and is started again", signal.Signals(-status).name)
        if status == -signal.SIGBUS:
            log.error("%s", MAPPING_GONE)
            environment["PREPARE_MODELS"] = "false"
        pause = min(2 * pause, _LONGEST_PAUSE) if time.monotonic() - began < _SHORT_LIFE else _FIRST_PAUSE
        if stopping.wait(pause):
            return 0


def end_with_parent() -> None:
    """From now on this process is told to end when the one that supervises it is killed."""
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
