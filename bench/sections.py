# SPDX-License-Identifier: AGPL-3.0-only
"""The sections of the benchmark: each measures one thing and says it in a table and in named figures."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from bench import load, measure
from bench.floor import THREADS, Floor, clip_photo, combinations, photos_a_second
from bench.load import CHECK, Client, photo_request, text_request
from bench.measure import Memory, median, pairs, percentile
from bench.models import FREE, NAME, environment
from bench.photos import JPEG_12, JPEG_48, JPEG_1440, PAGE_12, PAGE_1440, PNG
from bench.report import Results, Table
from bench.service import Launcher, Service, ocr_weights

CLIP, FACES, OCR = "/clip/img", "/represent", "/ocr"
ALL: Mapping[str, tuple[str, ...]] = {
    CLIP: (JPEG_12, JPEG_1440, JPEG_48, PNG),
    FACES: (JPEG_12, JPEG_1440, JPEG_48, PNG),
    OCR: (PAGE_12, PAGE_1440, JPEG_12, JPEG_48, PNG),
}
CORE = 2  # the first of these, which the targets are about
MODELS = 6  # of all tasks together
_PREPARATION = 600.0  # seconds that their preparation may take


@dataclass
class Bench:
    """What the sections share. The services start when one first asks for them, and run until `ended` is closed."""

    launcher: Launcher
    photos: Mapping[str, bytes]
    quick: bool
    ended: ExitStack
    results: Results = field(default_factory=Results)

    @cached_property
    def floor(self) -> Floor:
        return self.floor_with(THREADS)

    @cached_property
    def straightforward(self) -> Service:
        return self.ended.enter_context(self.launcher.straightforward())

    @cached_property
    def ours(self) -> Service:
        """Ours, with its models prepared."""
        service = self.ended.enter_context(self.launcher.ours())
        load.at_once(service.port, list(self.steps.values()), 1)
        self.wait_until_prepared()
        return service

    @cached_property
    def steps(self) -> Mapping[str, bytes]:
        """Requests that need each of the models, by what they need."""
        return {
            "CLIP, photos": photo_request(CLIP, self.photos[JPEG_12]),
            "CLIP, text": text_request("机场的飞机"),
            "faces": photo_request(FACES, self.photos[JPEG_12]),
            "OCR": photo_request(OCR, self.photos[PAGE_12]),
        }

    def wait_until_prepared(self) -> None:
        """For the pause in which a service prepares the models that it has loaded, and changes over to them."""
        end = time.monotonic() + _PREPARATION
        while len(list(self.launcher.cache.glob("*/*/*/prepared/[!.]*/record.json"))) < MODELS:
            assert time.monotonic() < end, "not all models were prepared"
            time.sleep(0.5)
        time.sleep(2)

    def floor_with(self, threads: int) -> Floor:
        return Floor(self.launcher.cache, NAME, NAME, threads)

    def rounds(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def one_at_a_time(bench: Bench) -> None:
    """A photo at a time, the floor and both services in turn."""
    table = Table(
        "One at a time",
        "Milliseconds from the request to the reply. The ratios are the medians of pairs, with quartiles.",
        ("route", "photo", "floor", "ours", "straightforward", "ours / floor", "straightforward / ours"),
    )
    with Client(bench.straightforward.port) as straightforward, Client(bench.ours.port) as ours:
        for route, names in ALL.items():
            for name in names[: CORE if bench.quick else None]:
                photo, request = bench.photos[name], photo_request(route, bench.photos[name])
                task = bench.floor.task(route)
                _agree(route, name, task(photo), ours.result(request), straightforward.result(request))
                contenders: dict[str, Callable[[], object]] = {
                    "floor": partial(task, photo),
                    "ours": partial(ours.ask, request),
                    "straightforward": partial(straightforward.ask, request),
                }
                times = measure.in_turn(contenders, bench.rounds(15, 3), bench.rounds(3, 0))
                own, ahead = pairs(times["ours"], times["floor"]), pairs(times["straightforward"], times["ours"])
                middle = {who: median(times[who]) for who in times}
                table.add(route, name, *(f"{middle[who]:.0f}" for who in contenders), own, ahead)
                for who in contenders:
                    bench.results.figures[f"ms {route} {name} {who}"] = middle[who]
                bench.results.figures[f"ours/floor {route} {name}"] = own.median
                bench.results.figures[f"straightforward/ours {route} {name}"] = ahead.median
                most = pairs(times["straightforward"], times["floor"])
                bench.results.figures[f"straightforward/floor {route} {name}"] = most.median
    bench.results.tables.append(table)


def _agree(route: str, name: str, floor: Any, ours: Any, straightforward: Any) -> None:
    """Raises RuntimeError where one of them does other work than the others."""
    if route == CLIP:
        vectors = [np.array(result, np.float64) for result in (floor, ours, straightforward)]
        agree = min(float(vectors[0] @ each / np.linalg.norm(each)) for each in vectors) > 0.999
    elif route == FACES:
        agree = len(floor) == len(ours) == len(straightforward) == 3
    elif name in (PAGE_12, PAGE_1440):
        agree = set(floor) == set(ours["texts"]) == set(straightforward["texts"])
    else:
        agree = True  # whatever the noise looks like
    if not agree:
        raise RuntimeError(f"{route} of the {name}: the answers differ, so the times can't be compared")


def many_at_once(bench: Bench) -> None:
    """Four and eight at a time, against the best that the floor does with any number of threads."""
    table = Table(
        "Four and eight at a time",
        "Photos a second; the floor is given the number of threads and workers with which it is fastest. "
        "Slowest: of all requests, against the median.",
        ("route", "photo", "clients", "floor", "ours", "straightforward", "ours / floor", "slowest / median"),
    )
    tried = combinations()[1:2] if bench.quick else combinations()  # the one that nearly always wins
    floors = {threads: bench.floor_with(threads) for threads in {threads for threads, _ in tried}}
    for route, (name, *_) in ALL.items():
        photo, request = bench.photos[name], photo_request(route, bench.photos[name])
        for service in (bench.ours,) if bench.quick else (bench.ours, bench.straightforward):
            load.at_once(service.port, [request] * 2, 2)
        scouted = {}
        for threads, workers in tried:
            task, few = floors[threads].task(route), [photo] * bench.rounds(16, 4)
            task(photo)
            scout = partial(photos_a_second, task, few, workers)
            scouted[threads, workers] = min(measure.milliseconds(scout) for _ in range(bench.rounds(2, 1)))
        threads, workers = min(scouted, key=scouted.__getitem__)
        for clients in (8,) if bench.quick else (4, 8):
            number = bench.rounds(3, 2) * 8
            rates: dict[str, list[float]] = {"floor": [], "ours": [], "straightforward": []}
            waits: list[float] = []
            for _ in range(bench.rounds(3, 1)):
                taken = measure.milliseconds(
                    partial(photos_a_second, floors[threads].task(route), [photo] * number, workers)
                )
                rates["floor"].append(number * 1000 / taken)
                crowd = load.at_once(bench.ours.port, [request] * number, clients)
                rates["ours"].append(crowd.a_second)
                waits += crowd.waits
                if not bench.quick:
                    crowd = load.at_once(bench.straightforward.port, [request] * number, clients)
                    rates["straightforward"].append(crowd.a_second)
            share, slowest = pairs(rates["ours"], rates["floor"]), max(waits) / median(waits)
            shown = [f"{median(rate):.1f}" if rate else "" for rate in rates.values()]
            shown[0] += f" ({threads} × {workers})"
            table.add(route, name, clients, *shown, share, f"{slowest:.2f}")
            bench.results.figures[f"throughput {route} {clients}"] = share.median
            bench.results.figures[f"slowest {route} {clients}"] = slowest
    bench.results.tables.append(table)


def overhead(bench: Bench) -> None:
    """What a request costs with a model that costs nothing."""
    table = Table(
        "A model that costs nothing",
        "Milliseconds of /clip/img with it: upload, decode, resize, reply. Beyond: more than decode and resize alone.",
        ("photo", "decode and resize", "ours", "straightforward", "ours beyond", "straightforward / ours"),
    )
    free = environment(bench.launcher.cache, FREE)
    with (
        bench.launcher.ours(free) as ours,
        bench.launcher.straightforward(free) as straightforward,
        Client(ours.port) as own,
        Client(straightforward.port) as other,
    ):
        for name in (JPEG_12, JPEG_1440):
            request = photo_request(CLIP, bench.photos[name])
            contenders: dict[str, Callable[[], object]] = {
                "floor": partial(clip_photo, bench.photos[name]),
                "ours": partial(own.ask, request),
                "straightforward": partial(other.ask, request),
            }
            times = measure.in_turn(contenders, bench.rounds(40, 8), bench.rounds(3, 1))
            beyond = median([a - b for a, b in zip(times["ours"], times["floor"], strict=True)])
            less = pairs(times["straightforward"], times["ours"])
            table.add(name, *(f"{median(times[who]):.1f}" for who in contenders), f"{beyond:.1f}", less)
            bench.results.figures[f"overhead less {name}"] = less.median
            bench.results.figures[f"overhead beyond {name}"] = beyond
    bench.results.tables.append(table)


def check_under_load(bench: Bench) -> None:
    """How long /check takes while eight heavy requests are worked on."""
    table = Table(
        "/check under load",
        "Milliseconds while eight clients send 12 MP photos to all three routes without a pause.",
        ("service", "p50", "p99", "slowest", "asked"),
    )
    heavy = [photo_request(route, bench.photos[names[0]]) for route, names in ALL.items()] * 3
    for who in ("ours",) if bench.quick else ("ours", "straightforward"):
        service: Service = getattr(bench, who)
        load.at_once(service.port, heavy[:3], 1)
        with load.under(service.port, heavy[:8]), Client(service.port) as client:
            times, until = [], time.monotonic() + bench.rounds(15, 3)
            while time.monotonic() < until:
                times.append(measure.milliseconds(partial(client.ask, CHECK)))
                time.sleep(0.01)
        table.add(who, *(f"{percentile(times, share):.1f}" for share in (50, 99, 100)), len(times))
        bench.results.figures[f"check p99 {who}"] = percentile(times, 99)
    bench.results.tables.append(table)


def start(bench: Bench) -> None:
    """From the start of the process to the first /check."""
    table = Table("Start", "Seconds from the start to the first answer to /check.", ("service", "median", "slowest"))
    for who, started in (("ours", bench.launcher.ours), ("straightforward", bench.launcher.straightforward)):
        times = []
        for _ in range(bench.rounds(7, 2)):
            with started() as service:
                times.append(service.start)
        table.add(who, f"{median(times):.2f}", f"{max(times):.2f}")
        bench.results.figures[f"start {who}"] = median(times)
    bench.results.tables.append(table)


def memory(bench: Bench) -> None:
    """Memory, idle, with models and under load; and how long models take to load, made ready or not."""
    cache = bench.launcher.cache
    disk = measure.megabytes([cache / "clip" / NAME, cache / "facial-recognition" / NAME], "**/model.onnx*")
    disk += sum(path.stat().st_size for path in ocr_weights().values()) / 1e6
    first: dict[str, str] = {}
    if bench.quick:
        assert bench.ours, "it has prepared them"
    else:
        for prepared in cache.glob("*/*/*/prepared"):
            shutil.rmtree(prepared, ignore_errors=True)
        with bench.launcher.ours() as service:
            load.at_once(service.port, list(bench.steps.values()), 1)
            first = _loads(service)
            bench.wait_until_prepared()
    with bench.launcher.ours() as service:
        seen = {"ours": _memory_of(bench, service)}
        later = _loads(service)
    if not bench.quick:
        with bench.launcher.straightforward() as service:
            seen["straightforward"] = _memory_of(bench, service)
    table = Table(
        "Memory",
        "Megabytes of all processes of the service, after each step: anonymous (RssAnon, what can't be dropped) and "
        f"resident (RSS, with mapped files). The models are {disk:.0f} MB on disk.",
        ("after", *(f"{who}, {kind}" for who in seen for kind in ("anonymous", "resident"))),
    )
    for step in seen["ours"]:
        most = [each[step] for each in seen.values()]
        table.add(step, *(f"{value:.0f}" for each in most for value in (each.anonymous, each.resident)))
    loads = Table(
        "Loading a model",
        "Seconds: as it is, the first time, and prepared, in any later process.",
        ("model", "first", "later"),
    )
    for part in later:
        loads.add(part, first.get(part, ""), later[part])
    bench.results.tables += [table, loads]
    bench.results.figures["idle"] = seen["ours"]["start"].resident
    bench.results.figures["anonymous/disk"] = seen["ours"]["+ OCR"].anonymous / disk
    bench.results.figures["slowest load"] = max(map(float, later.values()))


def _memory_of(bench: Bench, service: Service) -> dict[str, Memory]:
    """At the start, after each of the steps, and the most during eight large photos at once."""
    seen = {"start": measure.memory(service.pids())}
    for step, request in bench.steps.items():
        load.at_once(service.port, [request], 1)
        time.sleep(0.2)
        seen[f"+ {step}"] = measure.memory(service.pids())
    large = [photo_request(route, bench.photos[JPEG_48]) for route in (CLIP, FACES, OCR)] * 3
    with measure.peak(service.pids) as most:
        load.at_once(service.port, large[:8], 8)
    return {**seen, "most during eight of 48 MP": most[0]}


def _loads(service: Service) -> dict[str, str]:
    """Seconds that each model took to load, by the log."""
    return dict(re.findall(r"loaded (\S+) in ([\d.]+) s", service.log()))


def ocr_memory(bench: Bench) -> None:
    """Whether the memory of OCR grows with every new shape of a photo."""
    sizes, before, after = 200, 100, 1000
    table = Table(
        "Memory of OCR over time",
        f"Megabytes after so many photos of {sizes} different sizes, two at a time.",
        ("photos", "anonymous", "resident"),
    )
    requests = [photo_request(OCR, photo) for photo in _pages(bench.photos[PAGE_1440], sizes)]
    seen = {}
    with bench.launcher.ours() as service:
        done = 0
        for number in (before, after):
            load.at_once(service.port, [requests[i % sizes] for i in range(done, number)], 2)
            done, seen[number] = number, measure.memory(service.pids())
            table.add(number, f"{seen[number].anonymous:.0f}", f"{seen[number].resident:.0f}")
    bench.results.figures["ocr memory"] = seen[after].anonymous / seen[before].anonymous
    bench.results.tables.append(table)


def _pages(page: bytes, number: int) -> Iterator[bytes]:
    """Parts of the page of so many different sizes and shapes."""
    whole, random = Image.open(BytesIO(page)).convert("RGB"), np.random.default_rng(0)
    for _ in range(number):
        width, height = (int(random.integers(edge // 4, edge)) for edge in whole.size)
        left, top = int(random.integers(whole.width - width)), int(random.integers(whole.height - height))
        file = BytesIO()
        whole.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=85)
        yield file.getvalue()


def texts(bench: Bench) -> None:
    """Searches: other ones, the same one again, and the first one after the models were idle."""
    table = Table("Searches", "Milliseconds of /clip/txt.", ("", "median", "slowest"))
    number = bench.rounds(30, 8)
    with bench.launcher.ours() as service, Client(service.port) as client:
        first = [measure.milliseconds(partial(client.ask, text_request("第一次")))]
        other = [measure.milliseconds(partial(client.ask, text_request(f"飞机 {i}"))) for i in range(number)]
        again = [measure.milliseconds(partial(client.ask, text_request("飞机 0"))) for _ in range(number)]
    idle = {"MACHINE_LEARNING_MODEL_TTL": "1", "MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": NAME}
    with bench.launcher.ours(idle) as service, Client(service.port) as client:
        _until_loaded(client)
        time.sleep(3)
        waited = [measure.milliseconds(partial(client.ask, text_request("闲置之后")))]
    for what, times in {
        "the first, which loads the model": first,
        "another text": other,
        "the same text again": again,
        "the first after idle, with preload": waited,
    }.items():
        table.add(what, f"{median(times):.1f}", f"{max(times):.1f}")
    bench.results.figures["same text"] = median(again) / median(other)
    bench.results.figures["after idle"] = waited[0] / median(other)
    bench.results.tables.append(table)


def _until_loaded(client: Client) -> None:
    until = time.monotonic() + 60
    while not json.loads(client.ask(CHECK)).get("loaded") and time.monotonic() < until:
        time.sleep(0.1)


SLOW = {"ocr-memory"}
"""Left out where it has to be quick."""

SECTIONS: Mapping[str, Callable[[Bench], None]] = {
    "one": one_at_a_time,
    "many": many_at_once,
    "overhead": overhead,
    "check": check_under_load,
    "start": start,
    "memory": memory,
    "ocr-memory": ocr_memory,
    "texts": texts,
}
