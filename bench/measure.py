# SPDX-License-Identifier: AGPL-3.0-only
"""What is measured and how it is summed up: times in turn, pairs of them, memory of processes. Linux only (/proc)."""

import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PAUSE = 0.04  # seconds; onnxruntime's threads go on spinning for a while, and would slow down whoever is next


@dataclass(frozen=True)
class Ratio:
    """The median of pairs, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def pairs(ours: Sequence[float], others: Sequence[float]) -> Ratio:
    """ours / others, measured right after each other, so that a machine that drifts does so for both."""
    low, middle, high = (
        percentile([a / b for a, b in zip(ours, others, strict=True)], share) for share in (25, 50, 75)
    )
    return Ratio(middle, low, high)


def percentile(values: Sequence[float], share: float) -> float:
    """share: 0 to 100. Between two values where it falls between them."""
    ranked = sorted(values)
    place = (len(ranked) - 1) * share / 100
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)


median = statistics.median


def milliseconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def in_turn(contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Milliseconds of each in every round: all take one turn a round, another first each time, the others idle."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(_PAUSE)
            taken = milliseconds(contenders[name])
            if number >= 0:
                times[name].append(taken)
    return times


@dataclass(frozen=True)
class Memory:
    """Megabytes of all processes of a service. resident: RSS, mapped files included. anonymous: what is not a file's
    and can't be dropped (RssAnon)."""

    resident: float
    anonymous: float


def memory(pids: Sequence[int]) -> Memory:
    """Now, by /proc/PID/status."""
    resident = anonymous = 0
    for pid in pids:
        with suppress(OSError):  # it may have ended since
            status = Path(f"/proc/{pid}/status").read_text()
            kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status, re.M))
            resident += int(kilobytes.get("VmRSS", 0))
            anonymous += int(kilobytes.get("RssAnon", 0))
    return Memory(resident * 1024 / 1e6, anonymous * 1024 / 1e6)


def family(pid: int) -> list[int]:
    """The process and all that it started."""
    found = [pid]
    for parent in found:
        for children in Path("/proc").glob(f"{parent}/task/*/children"):
            with suppress(OSError):
                found += map(int, children.read_text().split())
    return found


@contextmanager
def peak(pids: Callable[[], Sequence[int]]) -> Iterator[list[Memory]]:
    """The one entry of the list is the most that was seen of either while the context lasted, 50 times a second."""
    most = [memory(pids())]
    ended = threading.Event()

    def watch() -> None:
        watched = pids()
        while not ended.wait(0.02):
            now = memory(watched)
            most[0] = Memory(max(most[0].resident, now.resident), max(most[0].anonymous, now.anonymous))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


def megabytes(folders: Sequence[Path], pattern: str = "**/*") -> float:
    """What lies in them, without what was prepared from it."""
    files = (path for folder in folders for path in folder.glob(pattern))
    return sum(path.stat().st_size for path in files if path.is_file() and "prepared" not in path.parts) / 1e6
