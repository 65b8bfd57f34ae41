# SPDX-License-Identifier: AGPL-3.0-only
"""The sections of the benchmark. Each function measures one thing; its docstring is printed above its table."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from bench.floor import COMBINATIONS, CORES, OCR_MODELS, Floor, clip_photo
from bench.measure import CHECK, Memory, Ratio, in_turn, meanwhile, milliseconds, photo_request, text_request
from bench.models import FREE, NAME, environment
from bench.photos import ALL, CLIP, JPEG_12, JPEG_48, JPEG_1440, OCR, PAGE_1440, photo
from bench.report import Rows
from bench.service import SERVICES, Launcher, Service, steps


@dataclass
class Bench:
    """What the sections share. figures: the results that the targets and the chart need, by name."""

    launcher: Launcher
    quick: bool
    figures: dict[str, float] = field(default_factory=dict)

    def rounds(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def one_at_a_time(bench: Bench) -> Rows:
    """Milliseconds from the request to the reply. A ratio is the median of all pairs, with its quartiles."""
    floor, rows = Floor(bench.launcher.settings), []
    with bench.launcher.run_all(SERVICES) as services:
        for route, name in [(each, name) for each, names in ALL.items() for name in names[: bench.rounds(5, 2)]]:
            task, request = partial(floor.tasks[route], photo(name)), photo_request(route, photo(name))
            answers = [task(), *(service.client.ask(request) for service in services.values())]
            if name in ALL[route][:2] and len({_size(answer) for answer in answers}) > 1:
                raise RuntimeError(f"{route} of the {name}: the answers differ, so the times can't be compared")
            work = {"floor": task} | {who: partial(each.client.ask, request) for who, each in services.items()}
            times = in_turn(work, bench.rounds(15, 3), bench.rounds(3, 0))
            found = {who: float(np.median(taken)) for who, taken in times.items()}
            for one, other in ("ours", "floor"), ("straightforward", "ours"):
                found[f"{one} / {other}"] = Ratio(times[one], times[other])
            rows.append({"route": route, "photo": name, **found})
            found["straightforward / floor"] = Ratio(times["straightforward"], times["floor"])
            bench.figures |= {f"{route}, {name}: {what}": value for what, value in found.items()}
    return rows


def _size(answer: Any) -> int:
    """The number of text lines or faces, or the length of a vector."""
    return len(answer["texts"] if isinstance(answer, dict) else answer)


def many_at_once(bench: Bench) -> Rows:
    """Photos a second. The floor uses the number of threads and workers (threads × workers) that makes it fastest. The
    last column compares the slowest request with the median."""
    number, rows = bench.rounds(24, 16), []
    with bench.launcher.run_all(SERVICES[: bench.rounds(2, 1)]) as services:
        for route, (name, *_) in ALL.items():
            at_once, request = partial(_floor_at_once, bench, route, photo(name)), photo_request(route, photo(name))
            tried = [(1, CORES + 1)] if bench.quick else COMBINATIONS  # nearly always the fastest
            threads, workers = max(tried, key=lambda each: at_once(16, *each))
            for clients in (8,) if bench.quick else (4, 8):
                rates: dict[str, list[float]] = {who: [] for who in ("floor", *SERVICES)}
                waits: list[float] = []
                for _ in range(bench.rounds(3, 1)):
                    rates["floor"].append(at_once(number, threads, workers))
                    for who, service in services.items():
                        rate, taken = service.send([request] * number, clients)
                        rates[who].append(rate)
                        waits += taken if who == "ours" else []
                row: dict[str, object] = {"route": route, "photo": name, "clients": clients}
                row |= {who: float(np.median(rate)) if rate else "" for who, rate in rates.items()}
                row["floor"] = f"{np.median(rates['floor']):.1f} ({threads} × {workers})"
                share, slowest = Ratio(rates["ours"], rates["floor"]), max(waits) / float(np.median(waits))
                rows.append({**row, "ours / floor": share, "slowest / median": slowest})
            bench.figures[f"{route}, eight at a time: throughput / floor's best"] = share
            bench.figures[f"{route}, eight at a time: slowest / median"] = slowest
    return rows


def _floor_at_once(bench: Bench, route: str, data: bytes, number: int, threads: int, workers: int) -> float:
    """Photos a second. number: of photos. workers: that process them at once."""
    task = Floor(bench.launcher.settings, threads).tasks[route]
    task(data)
    with ThreadPoolExecutor(workers) as pool:
        return number * 1000 / milliseconds(lambda: list(pool.map(task, [data] * number)))


def overhead(bench: Bench) -> Rows:
    """Milliseconds of /clip/img with a model that costs nothing: upload, decode, resize, reply. "Ours beyond" is what
    ours takes in addition to decode and resize."""
    rows = []
    with bench.launcher.run_all(SERVICES, environment(bench.launcher.cache, FREE)) as services:
        for name in (JPEG_12, JPEG_1440):
            work: dict[str, Callable[[], object]] = {"decode and resize": partial(clip_photo, photo(name))}
            request = photo_request(CLIP, photo(name))
            work |= {who: partial(service.client.ask, request) for who, service in services.items()}
            times = in_turn(work, bench.rounds(40, 8), bench.rounds(3, 1))
            less = Ratio(times["straightforward"], times["ours"])
            beyond = float(np.median(np.subtract(times["ours"], times["decode and resize"])))
            medians = {who: float(np.median(taken)) for who, taken in times.items()}
            rows.append({"photo": name, **medians, "ours beyond": beyond, "straightforward / ours": less})
            what = f"a model that costs nothing, {name.removesuffix(' JPEG')}"
            bench.figures |= {f"{what}: straightforward / ours": less, f"{what}: beyond decode and resize": beyond}
    return rows


def check_under_load(bench: Bench) -> Rows:
    """Milliseconds of /check while eight clients send 12 MP photos to all three routes without a pause."""
    heavy = [photo_request(route, photo(names[0])) for route, names in ALL.items()] * bench.rounds(24, 8)
    rows = []
    for who in SERVICES[: bench.rounds(2, 1)]:
        with bench.launcher.run_all([who]) as services:
            ask = partial(milliseconds, partial(services[who].client.ask, CHECK))
            times = meanwhile(partial(services[who].send, heavy, 8), ask, 0.01)
        p50, p99 = np.percentile(times, (50, 99)).tolist()
        rows.append({"service": who, "p50": p50, "p99": p99, "slowest": max(times), "asked": len(times)})
        bench.figures[f"/check under load, p99, {who}"] = p99
    return rows


def start(bench: Bench) -> Rows:
    """Seconds from the start to the first answer to /check."""
    times: dict[str, list[float]] = {who: [] for who in SERVICES}
    for who in SERVICES * bench.rounds(7, 2):
        with bench.launcher.run(who) as service:
            times[who].append(service.start_seconds)
    bench.figures["start to the first /check"] = float(np.median(times["ours"]))
    return _spread("service", times)


def _spread(column: str, times: Mapping[str, Sequence[float]]) -> Rows:
    return [{column: name, "median": np.median(taken), "slowest": max(taken)} for name, taken in times.items()]


def memory(bench: Bench) -> Rows:
    """Megabytes (Pss) of all processes of the service after each step: a page that several processes share counts once.
    The system can't take anonymous memory back; resident memory includes mapped files."""
    rows: dict[str, dict[str, object]] = {}
    for who in SERVICES[: bench.rounds(2, 1)]:
        with bench.launcher.run(who) as service:
            for step, seen in _memory_of(service).items():
                row = rows.setdefault(step, {"after": step})
                row |= {f"{who}, {kind}": mb for kind, mb in seen._asdict().items()}
                bench.figures |= {f"{kind} memory, {who}, {step}": mb for kind, mb in seen._asdict().items()}
    files = [*bench.launcher.cache.glob(f"*/{NAME}/*/model.onnx"), *OCR_MODELS.values()]
    disk = sum(path.stat().st_size for path in files) / 1e6
    bench.figures["memory, idle (Pss)"] = bench.figures["resident memory, ours, start"]
    share = bench.figures["anonymous memory, ours, + OCR"] / disk
    bench.figures["anonymous memory with all models / their size on disk"] = share
    return list(rows.values())


def _memory_of(service: Service) -> dict[str, Memory]:
    """Memory at the start, after each step, and the most during eight large photos at once."""
    seen = {"start": service.memory()}
    for step, request in steps().items():
        service.send([request])
        time.sleep(0.2)
        seen[f"+ {step}"] = service.memory()
    large = [photo_request(route, photo(JPEG_48)) for route in ALL] * 3
    during = meanwhile(partial(service.send, large[:8], 8), service.memory, 0.02)
    return {**seen, "most during eight of 48 MP": Memory(*np.max(during, axis=0).tolist())}


def loads(bench: Bench) -> Rows:
    """Seconds to load a model: first, the original file; later, its prepared form in a new process."""
    first = {} if bench.quick else bench.launcher.prepare()
    with bench.launcher.run_all(["ours"]) as services:
        later = services["ours"].loads()
    bench.figures["loading a model once it is prepared, the slowest"] = max(later.values())
    return [{"model": part, "first": first.get(part, ""), "later": seconds} for part, seconds in later.items()]


def ocr_memory(bench: Bench) -> Rows:
    """Megabytes after this many OCR photos of 200 different sizes, two at a time."""
    page, random, requests = Image.open(BytesIO(photo(PAGE_1440))), np.random.default_rng(0), []
    for _ in range(200):
        file, (right, bottom) = BytesIO(), (int(random.integers(edge // 4, edge)) for edge in page.size)
        page.crop((0, 0, right, bottom)).save(file, "JPEG", quality=85)
        requests.append(photo_request(OCR, file.getvalue()))
    with bench.launcher.run("ours") as service:
        service.send(requests[:100], 2)
        before = service.memory()
        service.send((requests * 5)[100:], 2)
        after = service.memory()
    bench.figures["OCR memory, after 1,000 photos / after 100"] = after.anonymous / before.anonymous
    return [{"photos": 100, **before._asdict()}, {"photos": 1000, **after._asdict()}]


def texts(bench: Bench) -> Rows:
    """Milliseconds of /clip/txt, the search by words."""

    def ask(service: Service, *texts: str) -> list[float]:
        return [milliseconds(partial(service.client.ask, text_request(text))) for text in texts]

    number = bench.rounds(30, 8)
    with bench.launcher.run("ours") as service:
        first, other = ask(service, "第一次"), ask(service, *(f"飞机 {i}" for i in range(number)))
        again = ask(service, *["飞机 0"] * number)
    idle = {"MACHINE_LEARNING_MODEL_TTL": "1", "MACHINE_LEARNING_PRELOAD__CLIP__TEXTUAL": NAME}
    with bench.launcher.run("ours", idle) as service:
        ask(service, "预加载")  # waits for the model
        time.sleep(3)
        waited = ask(service, "闲置之后")
    bench.figures["the same text again / another text"] = float(np.median(again) / np.median(other))
    bench.figures["first search after idle, with preload / another text"] = waited[0] / float(np.median(other))
    times = {"the first, which loads the model": first, "another text": other, "the same text again": again}
    return _spread("", {**times, "the first after idle, with preload": waited})


SECTIONS: Mapping[str, tuple[str, Callable[[Bench], Rows]]] = {
    "one": ("One at a time", one_at_a_time),
    "many": ("Four and eight at a time", many_at_once),
    "overhead": ("A model that costs nothing", overhead),
    "check": ("/check under load", check_under_load),
    "start": ("Start", start),
    "memory": ("Memory", memory),
    "loads": ("Loading a model", loads),
    "ocr-memory": ("Memory of OCR over time", ocr_memory),
    "texts": ("Searches", texts),
}
SLOW = {"ocr-memory"}
"""Left out of a quick run."""
