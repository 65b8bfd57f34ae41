# SPDX-License-Identifier: AGPL-3.0-only
"""Sends requests, measures times and their ratios, and reads the memory of processes. Linux only (/proc)."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

KEY = "the key of the benchmark"
_TIMEOUT_SECONDS = 120.0
_FORM = 'Content-Disposition: form-data; name="file"; filename="photo"\r\nContent-Type: application/octet-stream'
Seen = TypeVar("Seen")
Request = tuple[str, str, bytes]  # of a POST: route, type of the body, body

CHECK: Request = "/check", "text/plain", b""
_PAUSE_SECONDS = 0.04  # onnxruntime's threads keep spinning for a while and would slow the next contender


def photo_request(route: str, photo: bytes) -> Request:
    """A form with the photo in the field `file`."""
    body = f"--bench-bench\r\n{_FORM}\r\n\r\n".encode() + photo + b"\r\n--bench-bench--\r\n"
    return route, "multipart/form-data; boundary=bench-bench", body


def text_request(text: str) -> Request:
    return "/clip/txt", "application/json", json.dumps({"text": text}).encode()


class Client(HTTPConnection):
    """One connection to a service on this machine, opened by the first request. Not for several threads at once."""

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)

    def ask(self, request: Request) -> Any:
        """The reply's `result`. Raises RuntimeError if there is none, OSError or HTTPException without a reply."""
        route, kind, body = request
        self.request("POST", route, body, {"api-key": KEY, "Content-Type": kind})
        reply = self.getresponse()
        text = reply.read()
        answer = json.loads(text) if reply.status == 200 else {"msg": text}
        if "msg" in answer:
            raise RuntimeError(f"{route} was answered {reply.status}: {answer['msg']!r}")
        return answer["result"]


def send(port: int, requests: Sequence[Request], clients: int = 1) -> tuple[float, list[float]]:
    """Requests a second, and the milliseconds of each. A client sends its next request when it has a reply."""
    left = iter(requests)

    def work(_: int) -> list[float]:
        with closing(Client(port)) as client:
            return [milliseconds(partial(client.ask, request)) for request in left]

    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        waits = [wait for each in pool.map(work, range(clients)) for wait in each]
        return len(waits) / (time.perf_counter() - started), waits


def meanwhile(work: Callable[[], object], look: Callable[[], Seen], pause_seconds: float) -> list[Seen]:
    """Calls `look` again and again while `work` runs; returns its results."""
    seen = []
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while not working.done():
            seen.append(look())
            time.sleep(pause_seconds)
    working.result()
    return seen


class Ratio(float):
    """The median of ours / others over pairs measured right after each other, so that a change in the machine's speed
    affects both. Shown with the quartiles."""

    text: str

    def __new__(cls, ours: Sequence[float], others: Sequence[float]) -> Self:
        low, median, high = np.percentile(np.divide(ours, others), (25, 50, 75)).tolist()
        made = super().__new__(cls, median)
        made.text = f"{median:.2f} ({low:.2f}–{high:.2f})"
        return made

    def __str__(self) -> str:
        return self.text


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def in_turn(contenders: Mapping[str, Callable[[], object]], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Milliseconds of each, by round. In a round each runs once while the others idle; the first one changes."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(_PAUSE_SECONDS)
            times[name].append(milliseconds(contenders[name]))
    return {name: taken[warm_up:] for name, taken in times.items()}


class Memory(NamedTuple):
    """Megabytes of processes. anonymous: what can't be dropped. resident: mapped files included."""

    anonymous: float
    resident: float


def memory(pids: Sequence[int]) -> Memory:
    """The memory of the processes together, by Pss: a page that several of them share counts once."""
    rollup = ""
    for pid in pids:
        with suppress(OSError):  # it may have ended since
            rollup += Path(f"/proc/{pid}/smaps_rollup").read_text()
    kilobytes = (sum(map(int, re.findall(rf"^{name}:\s+(\d+)", rollup, re.M))) for name in ("Pss_Anon", "Pss"))
    return Memory(*(number * 1024 / 1e6 for number in kilobytes))


def family(pid: int) -> list[int]:
    """The ids of the process and of all its descendants."""
    found = [pid]
    for parent in found:
        for children in Path("/proc").glob(f"{parent}/task/*/children"):
            with suppress(OSError):
                found += map(int, children.read_text().split())
    return found
