# SPDX-License-Identifier: AGPL-3.0-only
"""Calls that may take minutes, and that the end of the process does not wait for."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def run(call: Callable[[], T]) -> Future[T]:
    """Makes the call in a daemon thread of its own."""
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()  # so that it can't be cancelled any more

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=work, name="hub", daemon=True).start()
    return answer
