# SPDX-License-Identifier: AGPL-3.0-only
"""The process that serves: uvicorn as a worker of gunicorn. Its parent keeps the socket and restarts it."""

import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import sys
import time
import warnings
from types import FrameType
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the base has no uvicorn-worker, the package that replaces it
    from uvicorn.workers import UvicornWorker

from gunicorn.glogging import Logger

from .connection import LimitedH11Protocol

_ENDED = b"ended"  # in a worker's report: it did not crash
_SHORT_LIFE_SECONDS = 10.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 60.0
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Log(Logger):
    """Sends gunicorn's and uvicorn's own lines to our log."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers = logging.getLogger().handlers


class Worker(UvicornWorker):
    """A worker that ends with its parent, and reports a crash to it.

    pause: seconds before it starts. device_id: its card. report: a file in memory, for the traceback of a crash.
    """

    CONFIG_KWARGS = {  # noqa: RUF012
        "loop": "auto",
        "http": LimitedH11Protocol,  # h11 refuses endless headers; httptools accepts them
        "ws": "none",
        "server_header": False,
        "timeout_graceful_shutdown": 60,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pause, self.device_id = 0.0, ""
        self.report = os.memfd_create("report")
        self.forked = time.monotonic()

    def init_process(self) -> None:
        """Runs in the new process: sets it up, then serves until it ends."""
        self.init_signals()
        os.setpgid(0, 0)  # so that Ctrl-C reaches only the parent, which then ends this process
        with contextlib.suppress(OSError, AttributeError):  # not on Linux
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # the kernel sends it if the parent is killed
        if os.getppid() != self.ppid:
            sys.exit(0)
        faulthandler.enable(self.report)
        time.sleep(self.pause)
        super().init_process()

    def init_signals(self) -> None:
        """Ends the process at SIGTERM or SIGINT before the server runs and after, when uvicorn raises them again."""
        super().init_signals()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends the process at once, at SIGQUIT."""
        os._exit(0)

    def _end(self, number: int, frame: FrameType | None) -> None:
        os.write(self.report, _ENDED)
        os._exit(0)  # a normal exit aborts if a thread is in onnxruntime, which plans for minutes on some devices

    def crash(self) -> str | None:
        """Runs in the parent once the worker has ended. Returns its report, or None if it was told to end."""
        said = os.pread(self.report, 1 << 16, 0)
        os.close(self.report)
        return None if said.endswith(_ENDED) else said.decode(errors="replace")

    def next_pause(self) -> float:
        """Seconds to wait before this crashed worker is replaced; twice as many each time workers crash early."""
        if time.monotonic() - self.forked - self.pause >= _SHORT_LIFE_SECONDS:
            return 0.0
        return min(max(2 * self.pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS, self.timeout)
