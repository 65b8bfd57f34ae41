# SPDX-License-Identifier: AGPL-3.0-only
"""Times taken in turn, their ratios, and the memory of processes. Linux only (/proc)."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

_PAUSE_SECONDS = 0.04  # onnxruntime's threads go on spinning for a while, and would slow down the next contender


class Ratio(NamedTuple):
    """The quartiles of ratios."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(ours: Sequence[float], others: Sequence[float]) -> Ratio:
    """ours / others in pairs measured right after each other, so that a machine that drifts does so for both."""
    return Ratio(*np.percentile(np.divide(ours, others), (25, 50, 75)).tolist())


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def in_turn(contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Milliseconds of each in every round: all take one turn a round, another first each time, the others idle."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(_PAUSE_SECONDS)
            times[name].append(milliseconds(contenders[name]))
    return {name: taken[warm_up:] for name, taken in times.items()}


class Memory(NamedTuple):
    """Megabytes of processes. anonymous: RssAnon, what can't be dropped. resident: RSS, mapped files included."""

    anonymous: float
    resident: float


def memory(pids: Sequence[int]) -> Memory:
    status = ""
    for pid in pids:
        with suppress(OSError):  # it may have ended since
            status += Path(f"/proc/{pid}/status").read_text()
    kilobytes = (sum(map(int, re.findall(rf"^{name}:\s+(\d+)", status, re.M))) for name in ("RssAnon", "VmRSS"))
    return Memory(*(number * 1024 / 1e6 for number in kilobytes))


def family(pid: int) -> list[int]:
    """The process and all that it started."""
    found = [pid]
    for parent in found:
        for children in Path("/proc").glob(f"{parent}/task/*/children"):
            with suppress(OSError):
                found += map(int, children.read_text().split())
    return found


@contextmanager
def peak(pids: Sequence[int]) -> Iterator[list[Memory]]:
    """The last entry of the list is the most that was seen of either, 50 times a second, until the context ends."""
    most, ended = [memory(pids)], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            most.append(Memory(*map(max, most[-1], memory(pids))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()
