# SPDX-License-Identifier: AGPL-3.0-only
"""The sections of the benchmark: each measures one thing, and records it in tables and in named figures."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from bench import footprint, measure
from bench.floor import COMBINATIONS, CORES, clip_photo
from bench.load import CHECK, Client, photo_request, send, text_request, under_load
from bench.measure import milliseconds, ratio
from bench.models import FREE, NAME, environment
from bench.photos import JPEG_12, JPEG_1440, PAGE_12, PAGE_1440
from bench.report import CONTENDERS
from bench.run import ALL, CLIP, FACES, SERVICES, Bench
from bench.service import Service

_PAIRS = ("ours", "floor"), ("straightforward", "ours"), ("straightforward", "floor")


def one_at_a_time(bench: Bench) -> None:
    """A photo at a time, the floor and both services in turn."""
    floor, rows = bench.floor(), []
    with Client(bench.ours.port) as ours, Client(bench.straightforward.port) as other:
        for route, name in [(each, name) for each, names in ALL.items() for name in names[: bench.rounds(5, 2)]]:
            photo, task, request = bench.photos[name], floor.tasks[route], photo_request(route, bench.photos[name])
            _compare(route, name, task(photo), ours.result(request), other.result(request))
            work = partial(task, photo), partial(ours.ask, request), partial(other.ask, request)
            times = measure.in_turn(dict(zip(CONTENDERS, work, strict=True)), bench.rounds(15, 3), bench.rounds(3, 0))
            medians = [float(np.median(taken)) for taken in times.values()]
            bench.figures |= {f"ms {route} {name} {who}": ms for who, ms in zip(CONTENDERS, medians, strict=True)}
            shares = {f"{a}/{b}": ratio(times[a], times[b]) for a, b in _PAIRS}
            bench.figures |= {f"{pair} {route} {name}": share.median for pair, share in shares.items()}
            rows.append([route, name, *(f"{ms:.0f}" for ms in medians), *list(shares.values())[:2]])
    bench.record(
        "One at a time",
        "Milliseconds from the request to the reply. The ratios are the medians of pairs, with quartiles.",
        "route|photo|floor|ours|straightforward|ours / floor|straightforward / ours",
        rows,
    )


def _compare(route: str, name: str, floor: Any, ours: Any, straightforward: Any) -> None:
    """Raises RuntimeError if one of them does other work than the others."""
    agree = True  # whatever OCR makes of noise
    if route == CLIP:
        agree = bool(np.corrcoef([np.array(each, float) for each in (floor, ours, straightforward)]).min() > 0.999)
    elif route == FACES:
        agree = len(floor) == len(ours) == len(straightforward) == 3
    elif name in (PAGE_12, PAGE_1440):
        agree = set(floor) == set(ours["texts"]) == set(straightforward["texts"])
    if not agree:
        raise RuntimeError(f"{route} of the {name}: the answers differ, so the times can't be compared")


def many_at_once(bench: Bench) -> None:
    """Four and eight at a time, against the best that the floor does with any number of threads."""
    services = {who: getattr(bench, who) for who in SERVICES[: bench.rounds(2, 1)]}
    number, rows = bench.rounds(24, 16), []
    for route, (name, *_) in ALL.items():
        photo, request = bench.photos[name], photo_request(route, bench.photos[name])
        for service in services.values():
            send(service.port, [request] * 2, 2)
        tried = [(1, CORES + 1)] if bench.quick else COMBINATIONS  # the one that is nearly always the fastest
        best = min(tried, key=lambda each: _floor_at_once(bench, route, [photo] * 16, *each))
        for clients in (8,) if bench.quick else (4, 8):
            rates: dict[str, list[float]] = {who: [] for who in CONTENDERS}
            waits: list[float] = []
            for _ in range(bench.rounds(3, 1)):
                rates["floor"].append(number * 1000 / _floor_at_once(bench, route, [photo] * number, *best))
                for who, service in services.items():
                    rate, taken = send(service.port, [request] * number, clients)
                    rates[who].append(rate)
                    waits += taken if who == "ours" else []
            share, slowest = ratio(rates["ours"], rates["floor"]), max(waits) / float(np.median(waits))
            shown = [f"{np.median(rate):.1f}" if rate else "" for rate in rates.values()]
            shown[0] += f" ({best[0]} × {best[1]})"
            rows.append([route, name, clients, *shown, share, f"{slowest:.2f}"])
            bench.figures[f"throughput {route} {clients}"] = share.median
            bench.figures[f"slowest {route} {clients}"] = slowest
    bench.record(
        "Four and eight at a time",
        "Photos a second; the floor is given the number of threads and workers with which it is fastest. "
        "Slowest: of all requests, against the median.",
        "route|photo|clients|floor|ours|straightforward|ours / floor|slowest / median",
        rows,
    )


def _floor_at_once(bench: Bench, route: str, photos: Sequence[bytes], threads: int, workers: int) -> float:
    """Milliseconds of all the photos by so many workers."""
    task = bench.floor(threads).tasks[route]
    task(photos[0])
    with ThreadPoolExecutor(workers) as pool:
        return milliseconds(lambda: list(pool.map(task, photos)))


def overhead(bench: Bench) -> None:
    """What a request costs with a model that costs nothing."""
    free, rows = environment(bench.launcher.cache, FREE), []
    with ExitStack() as ended:
        services = [ended.enter_context(bench.launcher.run(who, free)) for who in SERVICES]
        clients = [ended.enter_context(Client(service.port)) for service in services]
        for name in (JPEG_12, JPEG_1440):
            request = photo_request(CLIP, bench.photos[name])
            work: list[Callable[[], object]] = [partial(clip_photo, bench.photos[name])]
            work += [partial(client.ask, request) for client in clients]
            times = measure.in_turn(dict(zip(CONTENDERS, work, strict=True)), bench.rounds(40, 8), bench.rounds(3, 1))
            beyond = float(np.median(np.subtract(times["ours"], times["floor"])))
            less = ratio(times["straightforward"], times["ours"])
            rows.append([name, *(f"{np.median(times[who]):.1f}" for who in CONTENDERS), f"{beyond:.1f}", less])
            bench.figures |= {f"overhead less {name}": less.median, f"overhead beyond {name}": beyond}
    bench.record(
        "A model that costs nothing",
        "Milliseconds of /clip/img with it: upload, decode, resize, reply. Beyond: more than decode and resize alone.",
        "photo|decode and resize|ours|straightforward|ours beyond|straightforward / ours",
        rows,
    )


def check_under_load(bench: Bench) -> None:
    """How long /check takes while eight heavy requests are worked on."""
    heavy = [photo_request(route, bench.photos[names[0]]) for route, names in ALL.items()] * 3
    rows = []
    for who in SERVICES[: bench.rounds(2, 1)]:
        service: Service = getattr(bench, who)
        send(service.port, heavy[:3])
        with under_load(service.port, heavy[:8]), Client(service.port) as client:
            times, end = [], time.monotonic() + bench.rounds(15, 3)
            while time.monotonic() < end:
                times.append(milliseconds(partial(client.ask, CHECK)))
                time.sleep(0.01)
        percentiles = np.percentile(times, (50, 99, 100)).tolist()
        rows.append([who, *(f"{value:.1f}" for value in percentiles), len(times)])
        bench.figures[f"check p99 {who}"] = percentiles[1]
    note = "Milliseconds while eight clients send 12 MP photos to all three routes without a pause."
    bench.record("/check under load", note, "service|p50|p99|slowest|asked", rows)


def spread(times: Mapping[str, Sequence[float]], decimals: int) -> list[list[str]]:
    """Rows of a name, the median, and the slowest."""
    return [[name, *(f"{of(taken):.{decimals}f}" for of in (np.median, max))] for name, taken in times.items()]


def start(bench: Bench) -> None:
    """From the start of the process to the first /check."""
    times: dict[str, list[float]] = {who: [] for who in SERVICES}
    for who in SERVICES * bench.rounds(7, 2):
        with bench.launcher.run(who) as service:
            times[who].append(service.start_seconds)
    note = "Seconds from the start to the first answer to /check."
    bench.record("Start", note, "service|median|slowest", spread(times, 2))
    bench.figures["start ours"] = float(np.median(times["ours"]))


def texts(bench: Bench) -> None:
    """Searches: other ones, the same one again, and the first one after the models were idle."""

    def ask(client: Client, *texts: str) -> list[float]:
        return [milliseconds(partial(client.ask, text_request(text))) for text in texts]

    number = bench.rounds(30, 8)
    with bench.launcher.run("ours") as service, Client(service.port) as client:
        first, other = ask(client, "第一次"), ask(client, *(f"飞机 {i}" for i in range(number)))
        again = ask(client, *["飞机 0"] * number)
    idle = {"MACHINE_LEARNING_MODEL_TTL": "1", "MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": NAME}
    with bench.launcher.run("ours", idle) as service, Client(service.port) as client:
        end = time.monotonic() + 60
        while not json.loads(client.ask(CHECK)).get("loaded") and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(3)
        waited = ask(client, "闲置之后")
    rows = {
        "the first, which loads the model": first,
        "another text": other,
        "the same text again": again,
        "the first after idle, with preload": waited,
    }
    bench.record("Searches", "Milliseconds of /clip/txt.", "|median|slowest", spread(rows, 1))
    bench.figures["same text"] = float(np.median(again) / np.median(other))
    bench.figures["after idle"] = waited[0] / float(np.median(other))


SECTIONS: Mapping[str, Callable[[Bench], None]] = {
    "one": one_at_a_time,
    "many": many_at_once,
    "overhead": overhead,
    "check": check_under_load,
    "start": start,
    "memory": footprint.memory,
    "ocr-memory": footprint.ocr_memory,
    "texts": texts,
}
SLOW = {"ocr-memory"}
"""Left out of a quick run."""
