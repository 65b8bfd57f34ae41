# SPDX-License-Identifier: AGPL-3.0-only
"""The sections of the benchmark: each measures one thing, and records it in tables and in named figures."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from bench import measure
from bench.floor import CORES, THREADS, clip_photo
from bench.load import CHECK, Client, photo_request, send, text_request, under_load
from bench.measure import Memory, milliseconds, ratio
from bench.models import FREE, NAME, environment
from bench.photos import JPEG_12, JPEG_48, JPEG_1440, PAGE_12, PAGE_1440, PNG
from bench.report import CONTENDERS
from bench.run import CLIP, FACES, OCR, Bench
from bench.service import OCR_MODELS, Service

SERVICES = CONTENDERS[1:]
ALL: Mapping[str, tuple[str, ...]] = {
    CLIP: (JPEG_12, JPEG_1440, JPEG_48, PNG),
    FACES: (JPEG_12, JPEG_1440, JPEG_48, PNG),
    OCR: (PAGE_12, PAGE_1440, JPEG_12, JPEG_48, PNG),
}
"""The first two of each are what the targets are about."""


def one_at_a_time(bench: Bench) -> None:
    """A photo at a time, the floor and both services in turn."""
    floor, rows = bench.floor(), []
    with Client(bench.ours.port) as ours, Client(bench.straightforward.port) as other:
        for route, name in [(each, name) for each, names in ALL.items() for name in names[: bench.rounds(5, 2)]]:
            photo, task, request = bench.photos[name], floor.tasks[route], photo_request(route, bench.photos[name])
            _compare(route, name, task(photo), ours.result(request), other.result(request))
            work = partial(task, photo), partial(ours.ask, request), partial(other.ask, request)
            times = measure.in_turn(dict(zip(CONTENDERS, work, strict=True)), bench.rounds(15, 3), bench.rounds(3, 0))
            shares = [ratio(times["ours"], times["floor"])]
            shares += [ratio(times["straightforward"], times[than]) for than in ("ours", "floor")]
            medians = {f"ms {route} {name} {who}": float(np.median(taken)) for who, taken in times.items()}
            pairs = ("ours/floor", "straightforward/ours", "straightforward/floor")
            bench.figures |= medians
            bench.figures |= {f"{pair} {route} {name}": of.median for pair, of in zip(pairs, shares, strict=True)}
            rows.append([route, name, *(f"{each:.0f}" for each in medians.values()), *shares[:2]])
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
        vectors = [np.array(result, np.float64) for result in (floor, ours, straightforward)]
        agree = min(float(vectors[0] @ each / np.linalg.norm(each)) for each in vectors) > 0.999
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
        threads, workers = _find_fastest(bench, route, photo)
        task = bench.floor(threads).tasks[route]
        for clients in (8,) if bench.quick else (4, 8):
            rates: dict[str, list[float]] = {who: [] for who in CONTENDERS}
            waits: list[float] = []
            for _ in range(bench.rounds(3, 1)):
                rates["floor"].append(number * 1000 / milliseconds(partial(_run, task, [photo] * number, workers)))
                for who, service in services.items():
                    rate, taken = send(service.port, [request] * number, clients)
                    rates[who].append(rate)
                    waits += taken if who == "ours" else []
            share, slowest = ratio(rates["ours"], rates["floor"]), max(waits) / float(np.median(waits))
            shown = [f"{np.median(rate):.1f}" if rate else "" for rate in rates.values()]
            shown[0] += f" ({threads} × {workers})"
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


def _find_fastest(bench: Bench, route: str, photo: bytes) -> tuple[int, int]:
    """With how many threads of an inference and how many photos at once the floor is fastest."""
    if bench.quick:
        return 1, CORES + 1  # nearly always
    fit, taken = max(CORES // THREADS, 1), {}
    for threads, workers in {(1, CORES), (1, CORES + 1), (1, 2 * CORES), *((THREADS, fit + more) for more in range(3))}:
        task = bench.floor(threads).tasks[route]
        task(photo)
        taken[threads, workers] = min(milliseconds(partial(_run, task, [photo] * 16, workers)) for _ in range(2))
    return min(taken, key=taken.__getitem__)


def _run(task: Callable[[bytes], object], photos: Sequence[bytes], workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(task, photos))


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


def start(bench: Bench) -> None:
    """From the start of the process to the first /check."""
    times: dict[str, list[float]] = {who: [] for who in SERVICES}
    for who in SERVICES * bench.rounds(7, 2):
        with bench.launcher.run(who) as service:
            times[who].append(service.start_seconds)
    rows = [[who, f"{np.median(taken):.2f}", f"{max(taken):.2f}"] for who, taken in times.items()]
    bench.record("Start", "Seconds from the start to the first answer to /check.", "service|median|slowest", rows)
    bench.figures["start ours"] = float(np.median(times["ours"]))


def memory(bench: Bench) -> None:
    """Memory, idle, with models and under load; and how long models take to load, prepared or not."""
    cache = bench.launcher.cache
    files = [*cache.glob(f"*/{NAME}/*/model.onnx"), *OCR_MODELS.values()]
    disk = sum(path.stat().st_size for path in files) / 1e6
    first: dict[str, str] = {}
    if bench.quick:
        assert bench.ours, "it has prepared them"
    else:
        for prepared in cache.glob("*/*/*/prepared"):
            shutil.rmtree(prepared, ignore_errors=True)
        with bench.launcher.run("ours") as service:
            send(service.port, bench.steps.values())
            first = _loads(service)
            bench.wait_until_prepared()
    later: dict[str, str] = {}
    seen: dict[str, dict[str, Memory]] = {}
    for who in SERVICES[: bench.rounds(2, 1)]:
        with bench.launcher.run(who) as service:
            seen[who] = _memory_of(bench, service)
            later |= _loads(service)  # the straightforward one logs none
    bench.record(
        "Memory",
        "Megabytes of all processes of the service, after each step: anonymous (RssAnon, what can't be dropped) and "
        f"resident (RSS, with mapped files). The models are {disk:.0f} MB on disk.",
        "|".join(("after", *(f"{who}, {kind}" for who in seen for kind in Memory._fields))),
        [[step, *(f"{value:.0f}" for each in seen.values() for value in each[step])] for step in seen["ours"]],
    )
    note = "Seconds: as it is, the first time, and prepared, in any later process."
    rows = [[part, first.get(part, ""), seconds] for part, seconds in later.items()]
    bench.record("Loading a model", note, "model|first|later", rows)
    bench.figures["idle"] = seen["ours"]["start"].resident
    bench.figures["anonymous/disk"] = seen["ours"]["+ OCR"].anonymous / disk
    bench.figures["slowest load"] = max(map(float, later.values()))


def _memory_of(bench: Bench, service: Service) -> dict[str, Memory]:
    """At the start, after each of the steps, and the most during eight large photos at once."""
    seen = {"start": measure.memory(service.pids())}
    for step, request in bench.steps.items():
        send(service.port, [request])
        time.sleep(0.2)
        seen[f"+ {step}"] = measure.memory(service.pids())
    large = [photo_request(route, bench.photos[JPEG_48]) for route in ALL] * 3
    with measure.peak(service.pids()) as most:
        send(service.port, large[:8], 8)
    return {**seen, "most during eight of 48 MP": most[-1]}


def _loads(service: Service) -> dict[str, str]:
    """Seconds that each model took to load, by the log."""
    return dict(re.findall(r"loaded (\S+) in ([\d.]+) s", service.log()))


def ocr_memory(bench: Bench) -> None:
    """Whether the memory of OCR grows with every new shape of a photo."""
    requests = [photo_request(OCR, photo) for photo in _pages(bench.photos[PAGE_1440], 200)]
    with bench.launcher.run("ours") as service:
        send(service.port, requests[:100], 2)
        before = measure.memory(service.pids())
        send(service.port, (requests * 5)[100:], 2)
        after = measure.memory(service.pids())
    rows = [[photos, *(f"{value:.0f}" for value in seen)] for photos, seen in ((100, before), (1000, after))]
    note = "Megabytes after so many photos of 200 different sizes, two at a time."
    bench.record("Memory of OCR over time", note, "photos|anonymous|resident", rows)
    bench.figures["ocr memory"] = after.anonymous / before.anonymous


def _pages(page: bytes, number: int) -> Iterator[bytes]:
    """Parts of the page of so many different sizes and shapes."""
    whole, random = Image.open(BytesIO(page)), np.random.default_rng(0)
    for _ in range(number):
        width, height = (int(random.integers(edge // 4, edge)) for edge in whole.size)
        left, top = int(random.integers(whole.width - width)), int(random.integers(whole.height - height))
        file = BytesIO()
        whole.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=85)
        yield file.getvalue()


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
    shown = [[what, f"{np.median(times):.1f}", f"{max(times):.1f}"] for what, times in rows.items()]
    bench.record("Searches", "Milliseconds of /clip/txt.", "|median|slowest", shown)
    bench.figures["same text"] = float(np.median(again) / np.median(other))
    bench.figures["after idle"] = waited[0] / float(np.median(other))


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
SLOW = {"ocr-memory"}
"""Left out of a quick run."""
