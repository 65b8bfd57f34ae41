# SPDX-License-Identifier: AGPL-3.0-only
"""Runs calls that may take minutes; the process does not wait for them when it ends."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def run(call: Callable[[], T]) -> Future[T]:
    """Runs the call in a new daemon thread."""
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()  # so that nobody can cancel it

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=work, name="background", daemon=True).start()
    return answer
